//! What is wrong with a profile, and where: `file:line:column: message`.

use std::fmt;

use serde::Serialize;

/// A place in a profile. Both count from 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
}

impl Place {
    /// The first character.
    pub const START: Self = Self { line: 1, column: 1 };
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// The file as it was named, or the name of a shipped profile.
    pub file: String,
    /// Where in it.
    #[serde(flatten)]
    pub place: Place,
    /// What is wrong.
    pub message: String,
    /// What to do about it, where there is something to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Diagnostic {
    /// Something that is wrong, with nothing to say about what to do.
    pub(crate) fn new(file: impl Into<String>, place: Place, message: impl Into<String>) -> Self {
        Self { file: file.into(), place, message: message.into(), hint: None }
    }

    /// The same with what to do about it.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { line, column } = self.place;
        write!(f, "{}:{line}:{column}: {}", self.file, self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

/// Names that are told where one is not known: more than there are kinds of resources.
const MOST_KNOWN: usize = 40;
/// More mistakes than this are counted, not told.
pub(crate) const MAX_TOLD: usize = 100;

/// Collects what is wrong with one file.
#[derive(Debug)]
pub(crate) struct Sink {
    file: String,
    found: Vec<Diagnostic>,
    untold: usize,
    /// Of files that this one names, in the order in which they are named.
    others: Vec<Diagnostic>,
}

impl Sink {
    pub(crate) fn new(file: impl Into<String>) -> Self {
        Self { file: file.into(), found: Vec::new(), untold: 0, others: Vec::new() }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.found.is_empty() && self.others.is_empty()
    }

    /// A sink for another file that this one names. It goes back in with [`Sink::absorb`].
    pub(crate) fn beside(&self, file: impl Into<String>) -> Self {
        Self::new(file)
    }

    /// Takes in what was found in another file.
    pub(crate) fn absorb(&mut self, other: Self) {
        for new in other.into_found() {
            // A file that is included twice is wrong twice and told once.
            if !self.others.contains(&new) && self.others.len() < MAX_TOLD {
                self.others.push(new);
            }
        }
    }

    pub(crate) fn error(&mut self, place: Place, message: impl Into<String>) {
        self.push(place, message.into(), None);
    }

    pub(crate) fn hinted(&mut self, place: Place, message: impl Into<String>, hint: impl Into<String>) {
        self.push(place, message.into(), Some(hint.into()));
    }

    /// An unknown word, with the known one that is closest.
    pub(crate) fn unknown<'a>(
        &mut self,
        place: Place,
        what: &str,
        word: &str,
        known: impl Iterator<Item = &'a str> + Clone,
    ) {
        let hint = match closest(word, known.clone()) {
            Some(close) => format!("did you mean {close}?"),
            None => {
                let known: Vec<_> = known.take(MOST_KNOWN).collect();
                if known.is_empty() {
                    "there are none".into()
                } else {
                    format!("known: {}", known.join(", "))
                }
            }
        };
        self.hinted(place, format!("unknown {what} {}", quoted(word)), hint);
    }

    fn push(&mut self, place: Place, message: String, hint: Option<String>) {
        let new = Diagnostic { file: self.file.clone(), place, message, hint };
        if self.found.contains(&new) {
            return;
        }
        if self.found.len() >= MAX_TOLD {
            self.untold += 1;
        } else {
            self.found.push(new);
        }
    }

    /// All of it, in the order of the file, then what was found in the files that it names.
    pub(crate) fn into_found(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|diagnostic| diagnostic.place);
        if self.untold > 0 {
            let place = self.found.last().map_or(Place::START, |last| last.place);
            self.found.push(Diagnostic {
                file: self.file,
                place,
                message: format!("and {} more mistakes", self.untold),
                hint: None,
            });
        }
        self.found.append(&mut self.others);
        self.found
    }
}

/// A text from a profile as part of a message: quoted, escaped and not longer than a line.
pub(crate) fn quoted(text: &str) -> String {
    const MAX: usize = 60;
    if text.chars().count() <= MAX {
        format!("{text:?}")
    } else {
        format!("{:?}…", text.chars().take(MAX).collect::<String>())
    }
}

/// The known word a mistyped one most likely stands for.
pub(crate) fn closest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > 64 {
        return None;
    }
    let lower = word.to_lowercase();
    known
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        // Short words need to be closer: `x` is not a typing mistake for `name`.
        .filter(|(distance, candidate)| *distance <= (candidate.len().max(word.len()) / 3).clamp(1, 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
