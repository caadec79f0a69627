//! What stands in a template for a value that only the host will know. It can be put into the text and
//! nothing else: what would have to look at the value is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::value::{Object, ObjectRepr, Value};
use minijinja::{Error, ErrorKind, Output, State};
use postern_proto::ids::SecretRef;
use postern_proto::text::{Hole, Part, is_secret_name};

use super::diag::{closest, quoted};

/// The newest version of each secret; `None` while that is not known.
pub(crate) type Secrets = Option<BTreeMap<String, u32>>;

/// The holes of one rendering.
#[derive(Debug)]
pub(crate) struct Holes {
    /// Begins every marker in the output. Made for this rendering, so that no value can have it.
    nonce: String,
    secrets: Arc<Secrets>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Each that the template took.
    taken: Vec<Hole>,
    /// How many of them were put into the text.
    put: usize,
    /// One was looked at in another way.
    looked_at: bool,
    /// What is wrong with a secret's name, and what to do.
    problem: Option<(String, String)>,
}

const INDEX_DIGITS: usize = 8;

impl Holes {
    pub(crate) fn new(secrets: &Arc<Secrets>) -> Arc<Self> {
        let nonce = format!("{:032x}", rand::random::<u128>());
        Arc::new(Self { nonce, secrets: secrets.clone(), seen: Mutex::default() })
    }

    /// `late` and `secret`, as a template sees them.
    pub(crate) fn values(self: &Arc<Self>) -> [(String, Value); 2] {
        [
            ("late".to_owned(), Value::from_object(Late(self.clone()))),
            ("secret".to_owned(), Value::from_object(Secret(self.clone()))),
        ]
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, hole: Hole) -> Value {
        let mut seen = self.seen();
        seen.taken.push(hole);
        let index = seen.taken.len() - 1;
        drop(seen);
        Value::from_object(One { holes: self.clone(), index })
    }

    /// What is wrong with the name of a secret, and what to do.
    pub(crate) fn problem(&self) -> Option<(String, String)> {
        self.seen().problem.take()
    }

    /// The first hole, when one was used for more than to be put into the text.
    pub(crate) fn misused(&self) -> Option<Hole> {
        let seen = self.seen();
        (seen.looked_at || seen.put != seen.taken.len()).then(|| seen.taken.first().cloned()).flatten()
    }

    /// The rendered text as parts.
    pub(crate) fn split(&self, text: &str) -> Vec<Part> {
        let seen = self.seen();
        let mut pieces = text.split(&self.nonce);
        let mut parts = vec![Part::Text(pieces.next().unwrap_or_default().to_owned())];
        for piece in pieces {
            let (index, rest) = piece.split_at_checked(INDEX_DIGITS).unwrap_or(("", piece));
            let hole = index.parse::<usize>().ok().and_then(|index| seen.taken.get(index));
            parts.extend(hole.cloned().map(Part::Hole));
            parts.push(Part::Text(rest.to_owned()));
        }
        parts
    }
}

/// How a value is put into the text.
pub(crate) fn put(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    let Some(One { holes, index }) = value.downcast_object_ref::<One>() else {
        return minijinja::escape_formatter(out, state, value);
    };
    holes.seen().put += 1;
    out.write_str(&format!("{}{index:0INDEX_DIGITS$}", holes.nonce)).map_err(Error::from)
}

/// `late`: every name below it is a hole. Whether something yields it is known once the plan is whole.
#[derive(Debug)]
struct Late(Arc<Holes>);

impl Object for Late {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        key.as_str().map(|name| self.0.take(Hole::Late(name.to_owned())))
    }
}

/// `secret('name')`.
#[derive(Debug)]
struct Secret(Arc<Holes>);

impl Secret {
    fn version(&self, name: &str) -> Result<u32, (String, String)> {
        if !is_secret_name(name) {
            let hint = "want letters, digits, -, _, . and /, at most 128";
            return Err((format!("{} is no name for a secret", quoted(name)), hint.into()));
        }
        let Some(secrets) = &*self.0.secrets else { return Ok(1) };
        secrets.get(name).copied().ok_or_else(|| {
            let hint = match closest(name, secrets.keys().map(String::as_str)) {
                Some(close) => format!("did you mean {close}?"),
                None => format!("set it with `postern secret set {name}`"),
            };
            (format!("there is no secret called {}", quoted(name)), hint)
        })
    }
}

impl Object for Secret {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let [name] = args else { return Err(Error::new(ErrorKind::InvalidOperation, HOW)) };
        let Some(name) = name.as_str() else { return Err(Error::new(ErrorKind::InvalidOperation, HOW)) };
        match self.version(name) {
            Ok(version) => Ok(self.0.take(Hole::Secret(SecretRef { id: name.to_owned(), version }))),
            Err(problem) => {
                self.0.seen().problem = Some(problem);
                Err(Error::new(ErrorKind::InvalidOperation, HOW))
            }
        }
    }

    fn render(self: &Arc<Self>, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.seen().looked_at = true;
        self.0.seen().problem = Some(("a secret has a name".into(), HOW.into()));
        Ok(())
    }
}

const HOW: &str = "write {{ secret('name') }}";

/// One hole.
#[derive(Debug)]
struct One {
    holes: Arc<Holes>,
    index: usize,
}

impl Object for One {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        self.holes.seen().looked_at = true;
        ObjectRepr::Plain
    }

    fn is_true(self: &Arc<Self>) -> bool {
        self.holes.seen().looked_at = true;
        true
    }

    fn render(self: &Arc<Self>, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.holes.seen().looked_at = true;
        Ok(())
    }
}
