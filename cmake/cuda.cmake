# The CUDA backend, a separate module, so that nothing else is affected if it cannot be loaded.
#   AUTO: for this machine's GPUs, if it has any and a CUDA compiler | ON: for all supported architectures | OFF
#   EMULATED: on the processor, for tests
set(GRADSTEP_CUDA AUTO CACHE STRING "Build the CUDA backend: ON, OFF, AUTO or EMULATED")
if(GRADSTEP_CUDA STREQUAL "")
  set(GRADSTEP_CUDA AUTO)
endif()
set_property(CACHE GRADSTEP_CUDA PROPERTY STRINGS ON OFF AUTO EMULATED)
if(NOT GRADSTEP_CUDA MATCHES "^(ON|OFF|AUTO|EMULATED)$")
  message(FATAL_ERROR "GRADSTEP_CUDA is ${GRADSTEP_CUDA}, but must be ON, OFF, AUTO or EMULATED")
endif()

# Machine code for the architectures in use, and PTX of compute_100, from which drivers compile code for later ones and
# for 11.0.
set(architectures 75-real 80-real 86-real 89-real 90-real 100 120-real)
set(build ${GRADSTEP_CUDA})

# Compiling for all architectures takes minutes, so it happens only on request.
if(build STREQUAL "AUTO")
  set(build OFF)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE gpus ERROR_QUIET TIMEOUT 30)
  string(REGEX MATCHALL "[0-9]+[.][0-9]+" gpus "${gpus}")
  if(gpus)
    include(CheckLanguage)
    check_language(CUDA)
  endif()
  if(NOT gpus)
    set(reason "nvidia-smi reports no GPU. GRADSTEP_CUDA=ON builds it for all generations")
  elseif(NOT CMAKE_CUDA_COMPILER)
    set(reason "there is no nvcc of CUDA 13 or newer")
  else()
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --version OUTPUT_VARIABLE version)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE codes)
    string(REGEX MATCH "release ([0-9.]+)" version "${version}")
    set(version ${CMAKE_MATCH_1})
    set(architectures)
    foreach(gpu IN LISTS gpus)
      string(REPLACE "." "" gpu ${gpu})
      if(codes MATCHES "sm_${gpu}\n" AND NOT gpu IN_LIST architectures)
        list(APPEND architectures ${gpu})
      endif()
    endforeach()
    if(version VERSION_LESS 13)
      set(reason "${CMAKE_CUDA_COMPILER} is not of CUDA 13 or newer")
    elseif(NOT architectures)
      list(JOIN gpus ", " gpus)
      set(reason "${CMAKE_CUDA_COMPILER} makes no code for compute capability ${gpus}")
    else()
      set(build ON)
      list(TRANSFORM architectures APPEND "-real")
    endif()
  endif()
  if(NOT build)
    message(STATUS "The CUDA backend is left out: ${reason}.")
  endif()
endif()
if(build STREQUAL "OFF")
  return()
endif()

# The file that takes longest to compile comes first, so that the others are compiled in parallel with it.
set(kernels csrc/cuda/stored.cu csrc/cuda/native_double.cu csrc/cuda/native_float.cu csrc/cuda/advance.cu csrc/cuda/norm.cu
  csrc/cuda/runtime.cu)
gradstep_add_module(_cuda
  csrc/bind/cuda_arrays.cpp
  csrc/bind/cuda_module.cpp
  csrc/bind/dlpack.cpp
  csrc/bind/step_result.cpp
  csrc/bind/rules.cpp
  csrc/bind/tree.cpp
  csrc/step/cuda_state.cpp
  csrc/step/on_cuda.cpp)

if(build STREQUAL "EMULATED")
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas")
  target_sources(_cuda PRIVATE ${kernels} tests/emulated/emulator.cpp)
  target_include_directories(_cuda SYSTEM BEFORE PRIVATE tests/emulated)
  target_compile_definitions(_cuda PRIVATE GRADSTEP_EMULATED_CUDA
    GRADSTEP_CUDA_COMPILER="none: emulated on the processor" GRADSTEP_CUDA_ARCHITECTURES="none")
  return()
endif()

if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  set(CMAKE_CUDA_ARCHITECTURES ${architectures})
endif()
enable_language(CUDA)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
add_library(gradstep_cuda OBJECT ${kernels})
target_include_directories(gradstep_cuda PRIVATE csrc)
# -fmad=false disables fused multiply-add. The other options are defaults, set explicitly to override flags of the user.
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
