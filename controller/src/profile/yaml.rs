//! YAML text into a tree whose every node knows its place. Bounded: depth, nodes, expansion of aliases.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::diag::{Place, Sink, quoted};

/// The deepest nesting. A profile needs six levels; the tree is walked by recursion.
const MAX_DEPTH: usize = 32;
/// The most nodes, those that aliases repeat included. A text counts as one more node for each 64 bytes, so
/// that a long text repeated by aliases is bounded too.
const MAX_NODES: usize = 50_000;

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One entry of a map, in the order of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) value: Node,
}

/// A scalar as it was written: what it means is decided by who wants it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    pub(crate) style: ScalarStyle,
}

impl Scalar {
    /// Written without quotes and not as a block.
    pub(crate) fn is_plain(&self) -> bool {
        self.style == ScalarStyle::Plain
    }

    /// Nothing, `~` or `null`, by the core schema of YAML 1.2.
    pub(crate) fn is_null(&self) -> bool {
        self.is_plain() && matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL")
    }
}

impl Entry {
    /// Its key was a map or a list, which was reported.
    pub(crate) fn is_reported(&self) -> bool {
        self.key == COMPLEX_KEY
    }
}

impl Node {
    /// What it is, for people.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            Value::Scalar(scalar) if scalar.is_null() => "nothing".into(),
            Value::Scalar(scalar) => quoted(&scalar.text),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a map".into(),
        }
    }

    /// Does something with every scalar, those in lists and maps included.
    pub(crate) fn each(&self, visit: &mut dyn FnMut(&Scalar, Place)) {
        match &self.value {
            Value::Scalar(scalar) => visit(scalar, self.place),
            Value::List(items) => items.iter().for_each(|item| item.each(visit)),
            Value::Map(entries) => entries.iter().for_each(|entry| entry.value.each(visit)),
        }
    }

    /// Whether some scalar is like this.
    pub(crate) fn has(&self, like: &dyn Fn(&Scalar) -> bool) -> bool {
        let mut found = false;
        self.each(&mut |scalar, _| found |= like(scalar));
        found
    }

    /// `{{ x }}` without quotes is, to YAML, a map whose key is a map. Such a key is kept as this text.
    pub(crate) fn is_bare_template(&self) -> bool {
        matches!(&self.value, Value::Map(entries) if entries.iter().any(Entry::is_reported))
    }
}

/// Stands for a key that is itself a map or a list; such a key was reported.
const COMPLEX_KEY: &str = "\u{0}";

fn place(mark: &Marker) -> Place {
    Place { line: mark.line().max(1), column: mark.col() + 1 }
}

/// The one document of a profile; `None` when there is none, and then `sink` says why.
pub(crate) fn parse(text: &str, sink: &mut Sink) -> Option<Node> {
    parse_as(text, "a profile has at least name: and resources:", sink)
}

/// The one document of a text; `hint` says what one that is empty lacks.
pub(crate) fn parse_as(text: &str, hint: &str, sink: &mut Sink) -> Option<Node> {
    let mut builder = Builder::default();
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let step = match event {
            Ok((event, span)) => builder.take(event, place(&span.start), sink),
            Err(error) => {
                sink.hinted(
                    place(error.marker()),
                    format!("this is not YAML: {}", error.info()),
                    "a text with : or # or { in it needs quotes",
                );
                return None;
            }
        };
        match step {
            Ok(true) => {}
            Ok(false) => break,
            Err(()) => return None,
        }
    }
    if builder.root.is_none() && sink.is_clean() {
        sink.hinted(Place::START, "the file is empty", hint);
    }
    builder.root
}

/// A collection that is still open.
struct Open {
    place: Place,
    anchor: usize,
    kind: OpenKind,
}

enum OpenKind {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(String, Place)> },
}

#[derive(Default)]
struct Builder {
    stack: Vec<Open>,
    anchors: HashMap<usize, (Node, Size)>,
    nodes: usize,
    root: Option<Node>,
    documents: usize,
}

impl Builder {
    /// False when nothing more is to be read; an error was reported.
    fn take(&mut self, event: Event<'_>, place: Place, sink: &mut Sink) -> Result<bool, ()> {
        match event {
            Event::Nothing | Event::StreamStart | Event::DocumentEnd => {}
            Event::StreamEnd => return Ok(false),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    sink.error(place, "a second document: one file holds one profile");
                    return Err(());
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let style = tagged(style, tag.as_deref(), place, sink);
                let value = Value::Scalar(Scalar { text: text.into_owned(), style });
                let node = Node { place, value };
                self.count(size(&node).nodes, place, sink)?;
                self.finish(node, anchor, sink);
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    sink.error(place, "this alias is inside of what it names");
                    return Err(());
                };
                self.count(size.nodes, place, sink)?;
                if self.stack.len() + size.depth > MAX_DEPTH {
                    return too_deep(place, sink);
                }
                // Placed where it is used: that is the line people look for.
                self.finish(Node { place, ..node }, 0, sink);
            }
            Event::SequenceStart(anchor, _) => {
                self.open(place, anchor, OpenKind::List(Vec::new()), sink)?;
            }
            Event::MappingStart(anchor, _) => {
                self.open(place, anchor, OpenKind::Map { entries: Vec::new(), key: None }, sink)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.stack.pop() {
                    let value = match open.kind {
                        OpenKind::List(items) => Value::List(items),
                        OpenKind::Map { entries, .. } => Value::Map(entries),
                    };
                    self.finish(Node { place: open.place, value }, open.anchor, sink);
                }
            }
        }
        Ok(true)
    }

    fn count(&mut self, nodes: usize, place: Place, sink: &mut Sink) -> Result<(), ()> {
        self.nodes = self.nodes.saturating_add(nodes);
        if self.nodes > MAX_NODES {
            sink.error(place, format!("more than {MAX_NODES} values, those that aliases repeat included"));
            return Err(());
        }
        Ok(())
    }

    fn open(&mut self, place: Place, anchor: usize, kind: OpenKind, sink: &mut Sink) -> Result<(), ()> {
        self.count(1, place, sink)?;
        if self.stack.len() >= MAX_DEPTH {
            return too_deep(place, sink);
        }
        self.stack.push(Open { place, anchor, kind });
        Ok(())
    }

    fn finish(&mut self, node: Node, anchor: usize, sink: &mut Sink) {
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), size(&node)));
        }
        match self.stack.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(OpenKind::List(items)) => items.push(node),
            Some(OpenKind::Map { entries, key }) => match key.take() {
                None => *key = Some(key_of(node, sink)),
                Some((key, key_place)) => {
                    if key == "<<" {
                        sink.hinted(
                            key_place,
                            "merge keys (<<) are not part of YAML 1.2",
                            "write the fields out",
                        );
                    } else if let Some(first) =
                        entries.iter().find(|entry| entry.key == key && key != COMPLEX_KEY)
                    {
                        let line = first.key_place.line;
                        sink.error(
                            key_place,
                            format!("{} is here twice, first in line {line}", quoted(&key)),
                        );
                    } else {
                        entries.push(Entry { key, key_place, value: node });
                    }
                }
            },
        }
    }
}

fn key_of(node: Node, sink: &mut Sink) -> (String, Place) {
    match node.value {
        Value::Scalar(scalar) => (scalar.text, node.place),
        Value::Map(_) => {
            let hint = "a template needs quotes: \"{{ name }}\"";
            sink.hinted(node.place, "a map cannot be the name of a field", hint);
            (COMPLEX_KEY.into(), node.place)
        }
        Value::List(_) => {
            sink.error(node.place, "a list cannot be the name of a field");
            (COMPLEX_KEY.into(), node.place)
        }
    }
}

/// `!!str` makes a text of anything; other tags mean nothing here and are refused.
fn tagged(style: ScalarStyle, tag: Option<&Tag>, place: Place, sink: &mut Sink) -> ScalarStyle {
    match tag {
        None => style,
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => match style {
            ScalarStyle::Plain => ScalarStyle::DoubleQuoted,
            style => style,
        },
        Some(tag) => {
            sink.error(place, format!("the tag {} means nothing in a profile", quoted(&tag.to_string())));
            style
        }
    }
}

fn too_deep<T>(place: Place, sink: &mut Sink) -> Result<T, ()> {
    sink.error(place, format!("nested more than {MAX_DEPTH} levels deep"));
    Err(())
}

#[derive(Clone, Copy)]
struct Size {
    nodes: usize,
    depth: usize,
}

/// How much a tree counts. The recursion is bounded by [`MAX_DEPTH`], since aliases are held to it too.
fn size(node: &Node) -> Size {
    let children: Vec<_> = match &node.value {
        Value::Scalar(scalar) => return Size { nodes: 1 + scalar.text.len() / 64, depth: 0 },
        Value::List(items) => items.iter().map(size).collect(),
        Value::Map(entries) => entries.iter().map(|entry| size(&entry.value)).collect(),
    };
    Size {
        nodes: 1 + children.iter().map(|child| child.nodes).sum::<usize>(),
        depth: 1 + children.iter().map(|child| child.depth).max().unwrap_or(0),
    }
}
