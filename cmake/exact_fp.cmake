# The only floating-point flags of the project. Every target that computes links gradstep_exact_fp.
# They are added after the user's own flags, so that a -ffast-math in CXXFLAGS cannot change a bit.
# -fno-math-errno lets sqrt vectorize, -fno-trapping-math lets selects; neither changes a result.
add_library(gradstep_exact_fp INTERFACE)
# At the link, -ffast-math would add start-up code that flushes subnormals in the thread that imports.
target_link_options(gradstep_exact_fp INTERFACE -fno-fast-math)
target_compile_options(gradstep_exact_fp INTERFACE
  -fno-fast-math -ffp-contract=off -fno-math-errno -fno-trapping-math)
