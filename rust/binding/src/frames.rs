//! Commands as Python tuples, and back, and Fastjson's spellings: for the name server and the client, which have no store.
use aerobee_engine::frame::{Cutter, Flow, ProtocolError};
use aerobee_engine::header::{Encoding, Fixed, Header, Writer};
use aerobee_engine::{json, loose};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use crate::enter::{protocol_error, python_error, Bytes};

/// `CommandTuple` of the stub.
pub fn command_tuple<'py>(
    py: Python<'py>,
    header: &Header,
    source: &[u8],
    body: &[u8],
    encoding: Encoding,
) -> PyResult<Bound<'py, PyTuple>> {
    let fields = PyDict::new(py);
    for (key, value) in header.fields(source) {
        fields.set_item(PyString::new(py, key), PyString::new(py, value))?;
    }
    (
        header.code,
        header.language,
        header.version,
        header.opaque,
        header.flag,
        header.remark(source),
        fields,
        PyBytes::new(py, body),
        encoding as u8,
    )
        .into_pyobject(py)
}

#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub fn encode_frame<'py>(
    py: Python<'py>,
    code: i32,
    language: u8,
    version: i32,
    opaque: i32,
    flag: i32,
    remark: Option<&str>,
    ext_fields: Option<&Bound<'py, PyDict>>,
    body: Option<&Bound<'py, PyAny>>,
    encoding: u8,
) -> PyResult<Bound<'py, PyBytes>> {
    let encoding =
        Encoding::from_number(encoding).ok_or_else(|| PyValueError::new_err("encoding is 0 (JSON) or 1 (ROCKETMQ)"))?;
    let body = body.map(Bytes::of).transpose()?;
    let body = body.as_ref().map_or(&[][..], Bytes::as_slice);
    let mut out = Vec::with_capacity(256 + body.len());
    let mut writer = Writer::begin(&mut out, encoding, Fixed { code, language, version, opaque, flag, remark });
    if let Some(fields) = ext_fields {
        for (key, value) in fields.iter() {
            if value.is_none() {
                continue;
            }
            let key = key.downcast::<PyString>()?;
            let value = value.downcast::<PyString>()?;
            writer.field(&key.to_cow()?, &value.to_cow()?);
        }
    }
    writer.end_header();
    if writer.out.len() - 8 > 0xff_ffff {
        return Err(PyValueError::new_err("a header of 16 MiB or more"));
    }
    writer.out.extend_from_slice(body);
    writer.finish();
    Ok(PyBytes::new(py, &out))
}

#[pyfunction]
pub fn strict_json(py: Python<'_>, text: &str) -> PyResult<(String, bool)> {
    json::strict(text).map(|strict| (strict.text, strict.queue_keys)).map_err(|wrong| {
        let found: String = text[wrong.at..].chars().take(20).collect();
        let at = text[..wrong.at].chars().count();
        let reason = format!("not JSON at character {at}: {} expected, found {found:?}", wrong.expected);
        python_error(py, "MalformedRequest", &reason)
    })
}

#[pyfunction]
pub fn loose_json<'py>(py: Python<'py>, json: &[u8], pretty: bool, bare_keys: bool) -> Bound<'py, PyBytes> {
    PyBytes::new(py, &loose::loose(json, pretty, bare_keys))
}

#[pyclass(module = "aerobee._engine")]
pub struct Decoder {
    cutter: Cutter,
    header: Header,
    frame_bytes_max: usize,
}

#[pymethods]
impl Decoder {
    #[new]
    #[pyo3(signature = (frame_bytes_max = 16777216))]
    fn new(frame_bytes_max: usize) -> Self {
        Decoder { cutter: Cutter::default(), header: Header::default(), frame_bytes_max }
    }

    fn feed<'py>(&mut self, py: Python<'py>, data: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let data = Bytes::of(data)?;
        let commands = PyList::empty(py);
        let header = &mut self.header;
        let mut raised: Option<PyErr> = None;
        let fed = self.cutter.feed(data.as_slice(), self.frame_bytes_max, |frame| -> Result<Flow, ProtocolError> {
            header.read(frame.encoding, frame.header)?;
            if raised.is_none() {
                let made = command_tuple(py, header, frame.header, frame.body, frame.encoding);
                raised = made.and_then(|command| commands.append(command)).err();
            }
            Ok(Flow::Go)
        });
        if let Some(error) = raised {
            return Err(error);
        }
        fed.map_err(|error| protocol_error(py, &error))?;
        Ok(commands)
    }

    /// Bytes of an unfinished frame that wait for the rest.
    #[getter]
    fn kept_bytes(&self) -> usize {
        self.cutter.kept()
    }
}
