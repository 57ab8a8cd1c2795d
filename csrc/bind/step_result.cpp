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
  PyObject* stats;      // a dict; null: None
};

// The types, which belong to the core module; the CUDA module finds them there.
struct Types {
  PyTypeObject *result, *norms;
};
Types types{};

PyTypeObject* find_type(const char* name) {
  return reinterpret_cast<PyTypeObject*>(py::object(py::module_::import("gradstep._core").attr(name)).release().ptr());
}

const Types& find_types() {
  if (types.result == nullptr) types = {find_type("StepResult"), find_type("TensorNorms")};
  return types;
}

StepResult& of(PyObject* self) { return *reinterpret_cast<StepResult*>(self); }

void deallocate(PyObject* self) {
  PyTypeObject* const of_self = Py_TYPE(self);
  Py_XDECREF(of(self).nonfinite);
  Py_XDECREF(of(self).stats);
  of_self->tp_free(self);
  Py_DECREF(of_self);
}

PyObject* applied(PyObject* self, void*) { return PyBool_FromLong(of(self).applied); }
PyObject* step(PyObject* self, void*) { return PyLong_FromLongLong(of(self).step); }
PyObject* grad_norm(PyObject* self, void*) {
  return of(self).has_norm ? PyFloat_FromDouble(of(self).grad_norm) : py::none().release().ptr();
}
PyObject* clip_factor(PyObject* self, void*) { return PyFloat_FromDouble(of(self).clip_factor); }
PyObject* or_none(PyObject* object) {
  return py::reinterpret_borrow<py::object>(object == nullptr ? Py_None : object).release().ptr();
}
PyObject* nonfinite(PyObject* self, void*) { return or_none(of(self).nonfinite); }
PyObject* stats(PyObject* self, void*) { return or_none(of(self).stats); }

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
    {"stats", &stats, nullptr,
     "The `TensorNorms` of the parameters that took part, by name; None where they were not asked for, or the step was "
     "skipped.",
     nullptr},
    {},
};

PyObject* repr(PyObject* self) {
  std::string text = "StepResult(";
  for (const PyGetSetDef* attribute = attributes; attribute->name != nullptr; ++attribute) {
    const auto value = py::reinterpret_steal<py::object>(PyObject_GetAttrString(self, attribute->name));
    if (!value) return nullptr;
    const auto shown = py::reinterpret_steal<py::object>(PyObject_Repr(value.ptr()));
    const char* const characters = shown ? PyUnicode_AsUTF8(shown.ptr()) : nullptr;
    if (characters == nullptr) return nullptr;
    text += std::string(attribute == attributes ? "" : ", ") + attribute->name + "=" + characters;
  }
  return PyUnicode_FromString((text + ")").c_str());
}

PyType_Slot slots[] = {
    {Py_tp_doc, const_cast<char*>("The result of a step.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(&deallocate)},
    {Py_tp_repr, reinterpret_cast<void*>(&repr)},
    {Py_tp_getset, attributes},
    {0, nullptr},
};

PyType_Spec spec = {"gradstep.StepResult", sizeof(StepResult), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

PyStructSequence_Field norm_fields[] = {
    {"gradient", "The norm of the gradient, divided by grad_scale and not clipped."},
    {"update", "The norm of the change that the step made."},
    {"weight", "The norm of the parameter after the step."},
    {},
};
PyStructSequence_Desc norms = {"gradstep.TensorNorms",
                               "The norms of a parameter in a step: those of its master where it has one, and of the "
                               "rows that were stepped where its gradient is a Rows.",
                               norm_fields, 3};

py::object make_norms(const TensorNorms& of_tensor) {
  auto made = py::reinterpret_steal<py::object>(PyStructSequence_New(find_types().norms));
  if (!made) throw py::error_already_set();
  const double values[] = {of_tensor.gradient, of_tensor.update, of_tensor.weight};
  for (int i = 0; i < norms.n_in_sequence; ++i) {
    PyStructSequence_SetItem(made.ptr(), i, py::float_(values[i]).release().ptr());
  }
  return made;
}

}  // namespace

void register_step_result(py::module_& m) {
  types = {reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec)), PyStructSequence_NewType(&norms)};
  if (types.result == nullptr || types.norms == nullptr) throw py::error_already_set();
  m.attr("StepResult") = py::handle(reinterpret_cast<PyObject*>(types.result));
  m.attr("TensorNorms") = py::handle(reinterpret_cast<PyObject*>(types.norms));
}

py::object make_step_result(std::int64_t step, const std::optional<GradientPass>& pass,
                            const std::vector<TensorNorms>& measured, const NameOf& name_of) {
  py::object position, stats;
  if (pass && pass->nonfinite.exists()) {
    position = py::make_tuple(name_of(pass->nonfinite.tensor), pass->nonfinite.element);
  }
  if (!measured.empty()) {
    py::dict by_name;
    for (std::size_t i = 0; i < measured.size(); ++i) {
      if (measured[i].exist) by_name[py::str(name_of(i))] = make_norms(measured[i]);
    }
    stats = std::move(by_name);
  }
  PyTypeObject* const type = find_types().result;
  auto made = py::reinterpret_steal<py::object>(type->tp_alloc(type, 0));
  if (!made) throw py::error_already_set();
  StepResult& result = of(made.ptr());
  result.step = step;
  result.applied = !pass || !pass->skip;
  result.has_norm = pass.has_value();
  result.grad_norm = pass ? pass->norm : 0;
  result.clip_factor = pass ? pass->clip_factor : 1;
  result.nonfinite = position.release().ptr();
  result.stats = stats.release().ptr();
  return made;
}

}  // namespace gradstep::bind
