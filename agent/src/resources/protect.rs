//! What a kind says about a change that could cut the host off: what is watched, and how the way back is put in
//! force.

use postern_proto::guard::Predicate;

/// Asks for a guard around a change. The guard keeps every file that the steps touch, and puts it back before
/// `reload`; so a kind whose steps only write files and then make some program read them needs to say no more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Protect {
    /// Watched beside the link, each only where it holds before the change.
    pub predicates: Vec<Predicate>,
    /// Paths that programs among the steps change (a unit's link that `systemctl enable` makes): kept and put back
    /// like those that the steps touch themselves.
    pub also: Vec<String>,
    /// Files that the change puts in force and does not write: where the same run has changed one of them before, it
    /// is put back as it was before the run.
    pub reads: Vec<String>,
    /// When those were last put in force, nanoseconds since the Unix epoch: what earlier runs have changed since then
    /// comes back, too. `None` where that is not known.
    pub reads_since_ns: Option<i128>,
    /// Programs that come before anything is put back: what stops a thing may have to read its files.
    pub first: Vec<Vec<String>>,
    /// Programs that put in force what was put back, in this order. They are run without the agent and maybe
    /// early in a boot, so each must do no harm when it is run twice or when what it reloads does not run yet.
    pub reload: Vec<Vec<String>>,
}
