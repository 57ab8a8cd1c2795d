#include "bind/step_result.h"

namespace py = pybind11;

namespace gradstep::bind {
namespace {

// A type of Python's C interface: one is made in every step, and an instance of pybind11's takes five times as long.
struct StepResult {
  PyObject_HEAD std::int64_t step;
  double grad_norm, clip_factor;
  bool applied, has_norm;
  PyObject* nonfinite;  // a tuple of a name and an index; null: None
};

PyTypeObject* type = nullptr;

StepResult& of(PyObject* self) { return *reinterpret_cast<StepResult*>(self); }

void deallocate(PyObject* self) {
  PyTypeObject* const of_self = Py_TYPE(self);
  Py_XDECREF(of(self).nonfinite);
  of_self->tp_free(self);
  Py_DECREF(of_self);
}

PyObject* applied(PyObject* self, void*) { return PyBool_FromLong(of(self).applied); }
PyObject* step(PyObject* self, void*) { return PyLong_FromLongLong(of(self).step); }
PyObject* grad_norm(PyObject* self, void*) {
  return of(self).has_norm ? PyFloat_FromDouble(of(self).grad_norm) : py::none().release().ptr();
}
PyObject* clip_factor(PyObject* self, void*) { return PyFloat_FromDouble(of(self).clip_factor); }
PyObject* nonfinite(PyObject* self, void*) {
  PyObject* const found = of(self).nonfinite;
  return py::reinterpret_borrow<py::object>(found == nullptr ? Py_None : found).release().ptr();
}

PyObject* repr(PyObject* self) {
  PyObject* parts[5] = {};
  const char* const names[5] = {"applied", "step", "grad_norm", "clip_factor", "nonfinite"};
  PyObject* text = nullptr;
  bool all = true;
  for (int i = 0; i < 5; ++i) all = all && (parts[i] = PyObject_GetAttrString(self, names[i])) != nullptr;
  if (all) {
    text = PyUnicode_FromFormat("StepResult(applied=%R, step=%R, grad_norm=%R, clip_factor=%R, nonfinite=%R)", parts[0],
                                parts[1], parts[2], parts[3], parts[4]);
  }
  for (PyObject* part : parts) Py_XDECREF(part);
  return text;
}

PyGetSetDef attributes[] = {
    {"applied", &applied, nullptr, "Whether the step changed parameters and states; False where it was skipped.",
     nullptr},
    {"step", &step, nullptr, "The number of steps taken, this one included if it was applied.", nullptr},
    {"grad_norm", &grad_norm, nullptr,
     "The norm of all gradients, after the division by grad_scale and before clipping; None where nothing required it.",
     nullptr},
    {"clip_factor", &clip_factor, nullptr,
     "What clipping multiplied the gradients by; with clip_per_tensor, the smallest of the factors.", nullptr},
    {"nonfinite", &nonfinite, nullptr,
     "The name of the first parameter whose gradient is not finite, and the index of the first such element in C "
     "order; "
     "None where all are finite, or nothing required a check.",
     nullptr},
    {},
};

PyType_Slot slots[] = {
    {Py_tp_doc, const_cast<char*>("The result of a step.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(&deallocate)},
    {Py_tp_repr, reinterpret_cast<void*>(&repr)},
    {Py_tp_getset, attributes},
    {0, nullptr},
};

PyType_Spec spec = {"gradstep.StepResult", sizeof(StepResult), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

}  // namespace

void register_step_result(py::module_& m) {
  type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
  if (type == nullptr) throw py::error_already_set();
  m.attr("StepResult") = py::handle(reinterpret_cast<PyObject*>(type));
}

py::object make_step_result(std::int64_t step, const std::optional<GradientPass>& pass, const std::string* nonfinite) {
  py::object position;
  if (nonfinite != nullptr) position = py::make_tuple(*nonfinite, pass->nonfinite.element);
  auto made = py::reinterpret_steal<py::object>(type->tp_alloc(type, 0));
  if (!made) throw py::error_already_set();
  StepResult& result = of(made.ptr());
  result.step = step;
  result.applied = !pass || !pass->skip;
  result.has_norm = pass.has_value();
  result.grad_norm = pass ? pass->norm : 0;
  result.clip_factor = pass ? pass->clip_factor : 1;
  result.nonfinite = position.release().ptr();
  return made;
}

}  // namespace gradstep::bind
