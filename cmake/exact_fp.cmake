# The only floating-point flags of the project. Every target that computes links gradstep_exact_fp.
# They are added after the user's own flags, so that a -ffast-math or -march=native in CXXFLAGS cannot change a bit.
add_library(gradstep_exact_fp INTERFACE)
if(MSVC)
  target_compile_options(gradstep_exact_fp INTERFACE /fp:precise)
else()
  # -fno-math-errno lets sqrt vectorize, -fno-trapping-math lets selects; neither changes a result.
  target_compile_options(gradstep_exact_fp INTERFACE
    -fno-fast-math -ffp-contract=off -fno-math-errno -fno-trapping-math)
endif()
