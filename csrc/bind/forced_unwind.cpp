// A daemon thread that takes the GIL while the interpreter is ending is ended by Python before 3.14, by pthread_exit().
// In glibc this unwinds the stack, also through the C++ that has called Python, whose destructors would then run
// without the GIL. Moreover, libgcc_s unwinds, so that a C++ runtime with an unwinder of its own, linked statically,
// crashes. Therefore the thread sleeps until the process ends, as in Python 3.14: the linker replaces the function that
// unwinders call for every frame with destructors or handlers (--wrap, see gradstep_add_module in CMakeLists.txt) by
// this one.

#include <unwind.h>

#include <chrono>
#include <thread>

extern "C" {

_Unwind_Reason_Code __real___gxx_personality_v0(int version, _Unwind_Action actions, _Unwind_Exception_Class kind,
                                                _Unwind_Exception* exception, _Unwind_Context* context);

_Unwind_Reason_Code __wrap___gxx_personality_v0(int version, _Unwind_Action actions, _Unwind_Exception_Class kind,
                                                _Unwind_Exception* exception, _Unwind_Context* context) {
  while ((actions & _UA_FORCE_UNWIND) != 0) std::this_thread::sleep_for(std::chrono::hours(1));
  return __real___gxx_personality_v0(version, actions, kind, exception, context);
}
}
