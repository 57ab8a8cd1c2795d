# THE table of instruction sets, weakest first. A row compiles csrc/cpu/kernels.cpp and csrc/cpu/conversions.cpp with
# its flags and adds a line to the generated list from which csrc/cpu/isa.cpp chooses at run time. A new instruction set
# is a new row.
#
#   gradstep_isa(<name> REQUIRES <features, as named in csrc/cpu/features.h> FLAGS <compiler flags>)

set(GRADSTEP_ISA_LIST ${CMAKE_CURRENT_BINARY_DIR}/generated/isa_list.inc)
file(WRITE ${GRADSTEP_ISA_LIST}.new "// Written by cmake/isa.cmake.\n")

function(gradstep_isa name)
  cmake_parse_arguments(ROW "" "" "REQUIRES;FLAGS" ${ARGN})
  list(JOIN ROW_REQUIRES " | " features)
  if(NOT features)
    set(features 0)
  endif()
  add_library(kernels_${name} OBJECT csrc/cpu/kernels.cpp csrc/cpu/conversions.cpp)
  target_compile_definitions(kernels_${name} PRIVATE GS_ISA=${name})
  # The loops are already written with vectors; auto-vectorization of the remainder loops would make the code three
  # times as large.
  set(options -fno-tree-vectorize)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND options -fno-unswitch-loops)
  endif()
  if(GRADSTEP_SANITIZE)
    # With all checks and full optimization, hundreds of kernels would take a quarter of an hour to compile.
    list(APPEND options -O1 -fno-sanitize=alignment,null,pointer-overflow,object-size)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      list(APPEND options --param=asan-instrumentation-with-call-threshold=0)
    endif()
  endif()
  set_source_files_properties(csrc/cpu/kernels.cpp PROPERTIES COMPILE_OPTIONS "${options}")
  # The flags are in an interface library because a target's own options would precede the baseline's and be overridden.
  add_library(isa_${name} INTERFACE)
  target_compile_options(isa_${name} INTERFACE ${ROW_FLAGS})
  target_link_libraries(kernels_${name} PRIVATE gradstep_flags isa_${name})
  target_sources(gradstep_core PRIVATE $<TARGET_OBJECTS:kernels_${name}>)
  list(JOIN ROW_FLAGS " " flags)
  file(APPEND ${GRADSTEP_ISA_LIST}.new "GS_ISA_ROW(${name}, ${features}, \"${flags}\")\n")
endfunction()

gradstep_isa(baseline)
if(GRADSTEP_X86_64)
  gradstep_isa(avx2 REQUIRES kAvx2 FLAGS -mavx2 -mf16c)
  # Without -mprefer-vector-width GCC and Clang use 256-bit vectors, for the sake of older chips.
  gradstep_isa(avx512 REQUIRES kAvx2 kAvx512 FLAGS
    -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
endif()

file(COPY_FILE ${GRADSTEP_ISA_LIST}.new ${GRADSTEP_ISA_LIST} ONLY_IF_DIFFERENT)
