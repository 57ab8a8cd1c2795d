# A toolchain for every system: zig's clang, of PyPI's package ziglang, which the `python` on the path must have.
# The environment variable GRADSTEP_TARGET is zig's name of the target, such as x86_64-linux-gnu.2.17.
if(NOT "$ENV{GRADSTEP_TARGET}" MATCHES "^([a-z0-9_]+)-(linux|macos|windows)")
  message(FATAL_ERROR "GRADSTEP_TARGET is '$ENV{GRADSTEP_TARGET}', but must be a target's name: aarch64-linux-musl")
endif()
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
set(systems_linux Linux)
set(systems_macos Darwin)
set(systems_windows Windows)
set(CMAKE_SYSTEM_NAME ${systems_${CMAKE_MATCH_2}})

execute_process(COMMAND python -c "import ziglang; print(ziglang.__path__[0])"
  OUTPUT_VARIABLE zig OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
set(zig ${zig}/zig)
set(CMAKE_CXX_COMPILER ${zig} c++)
set(CMAKE_CXX_COMPILER_TARGET $ENV{GRADSTEP_TARGET})
# CMake takes programs without arguments for these.
set(CMAKE_CXX_ARCHIVE_CREATE "${zig} ar qcs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "${zig} ar qs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")

# Whatever a target's first program links, zig compiles the standard library for; CMake's trials need not wait for that,
# nor does its identification of the compiler, with CMAKE_CXX_COMPILER_TARGET.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)

# zig's names of the baselines are its own, and it would take -mtune for another.
set(GRADSTEP_BASELINE "")
if(CMAKE_SYSTEM_PROCESSOR STREQUAL "x86_64")
  set(GRADSTEP_BASELINE -march=x86_64)
endif()

# zig's standard library, which it links statically, has no visible symbols, and its linker has no option to hide them.
set(GRADSTEP_HIDDEN_LIBRARIES ON)

# What runs the tests of a target, if it is installed.
if(CMAKE_SYSTEM_NAME STREQUAL "Windows")
  find_program(emulator NAMES wine64 wine PATHS /usr/lib/wine NO_CACHE)
elseif(CMAKE_SYSTEM_NAME STREQUAL "Linux" AND NOT CMAKE_SYSTEM_PROCESSOR STREQUAL CMAKE_HOST_SYSTEM_PROCESSOR)
  find_program(emulator NAMES qemu-${CMAKE_SYSTEM_PROCESSOR}-static qemu-${CMAKE_SYSTEM_PROCESSOR} NO_CACHE)
endif()
if(emulator)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${emulator})
endif()
