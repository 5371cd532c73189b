//! PyO3 face of the engine: translation only. `enter` is the one door into the engine; `frames` is the codec for those who
//! have no store (name server, client); `store` is the broker's engine. The Python side is described in `_engine.pyi`.
use pyo3::prelude::*;

mod enter;
mod frames;
mod store;

#[pymodule]
fn _engine(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_function(wrap_pyfunction!(frames::encode_frame, m)?)?;
    m.add_function(wrap_pyfunction!(frames::strict_json, m)?)?;
    m.add_function(wrap_pyfunction!(frames::loose_json, m)?)?;
    m.add_class::<frames::Decoder>()?;
    store::register(m)
}
