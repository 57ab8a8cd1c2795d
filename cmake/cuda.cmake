# The CUDA backend, a module of its own: where it cannot be loaded, nothing else is touched.
#   ON | OFF | AUTO: where a CUDA compiler is found | EMULATED: on the processor, for tests
set(GRADSTEP_CUDA AUTO CACHE STRING "Build the CUDA backend: ON, OFF, AUTO or EMULATED")
set_property(CACHE GRADSTEP_CUDA PROPERTY STRINGS ON OFF AUTO EMULATED)
if(NOT GRADSTEP_CUDA MATCHES "^(ON|OFF|AUTO|EMULATED)$")
  message(FATAL_ERROR "GRADSTEP_CUDA is ${GRADSTEP_CUDA}, but must be ON, OFF, AUTO or EMULATED")
endif()

set(build ${GRADSTEP_CUDA})
if(build STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  set(build OFF)
  if(CMAKE_CUDA_COMPILER)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE version)
    string(REGEX MATCH "release ([0-9.]+)" version "${version}")
    if(CMAKE_MATCH_1 VERSION_GREATER_EQUAL 13)
      set(build ON)
    else()
      message(STATUS "The CUDA backend is left out: ${CMAKE_CUDA_COMPILER} is not of CUDA 13 or newer")
    endif()
  endif()
endif()
if(build STREQUAL "OFF")
  return()
endif()

# The one that takes longest comes first: the others are compiled beside it.
set(kernels csrc/cuda/stored.cu csrc/cuda/native_double.cu csrc/cuda/native_float.cu csrc/cuda/held.cu csrc/cuda/norm.cu
  csrc/cuda/runtime.cu)
pybind11_add_module(_cuda MODULE NO_EXTRAS
  csrc/bind/cuda_arrays.cpp
  csrc/bind/cuda_module.cpp
  csrc/bind/rules.cpp
  csrc/step/on_cuda.cpp)
target_link_libraries(_cuda PRIVATE gradstep_core)
install(TARGETS _cuda LIBRARY DESTINATION gradstep)

if(build STREQUAL "EMULATED")
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas")
  target_sources(_cuda PRIVATE ${kernels} tests/emulated/emulator.cpp)
  target_include_directories(_cuda SYSTEM BEFORE PRIVATE tests/emulated)
  target_compile_definitions(_cuda PRIVATE GRADSTEP_EMULATED_CUDA
    GRADSTEP_CUDA_COMPILER="none: emulated on the processor" GRADSTEP_CUDA_ARCHITECTURES="none")
  return()
endif()

# Machine code for what is in use; and PTX, from which drivers make the code of what is to come, and of 11.0.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 89-real 90-real 100 120-real)
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
add_library(gradstep_cuda OBJECT ${kernels})
target_include_directories(gradstep_cuda PRIVATE csrc)
# -fmad=false: no fused multiply-adds. The others are the defaults, against flags of the user's.
target_compile_options(gradstep_cuda PRIVATE
  -fmad=false --prec-div=true --prec-sqrt=true --ftz=false --expt-relaxed-constexpr --compress-mode=size
  -Xcompiler=-Wall,-Wextra,-Wno-unknown-pragmas,-fno-lto,-fno-fast-math,-ffp-contract=off)
target_link_libraries(_cuda PRIVATE gradstep_cuda)
target_link_directories(_cuda PRIVATE ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES} ${CMAKE_CUDA_HOST_LINK_DIRECTORIES})
target_link_libraries(_cuda PRIVATE cudart_static ${CMAKE_DL_LIBS} rt)
list(JOIN CMAKE_CUDA_ARCHITECTURES " " architectures)
target_compile_definitions(_cuda PRIVATE
  GRADSTEP_CUDA_COMPILER="${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION}"
  GRADSTEP_CUDA_ARCHITECTURES="${architectures}")
