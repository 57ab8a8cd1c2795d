# The only floating-point flags of the project. Every target that computes links gradstep_exact_fp.
# The flags are added after the user's, so that -ffast-math in CXXFLAGS cannot change a bit.
# -fno-math-errno lets compilers vectorize sqrt, -fno-trapping-math selects; neither changes a result.
add_library(gradstep_exact_fp INTERFACE)
# When linking, -ffast-math would add start-up code that makes the importing thread flush subnormals.
target_link_options(gradstep_exact_fp INTERFACE -fno-fast-math)
target_compile_options(gradstep_exact_fp INTERFACE
  -fno-fast-math -ffp-contract=off -fno-math-errno -fno-trapping-math)
