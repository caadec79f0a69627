//! What a host has of memory and disk, as its agent said when its session began.

/// MiB each; nothing where the agent did not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Memory.
    pub memory_mb: Option<u64>,
    /// Swap.
    pub swap_mb: Option<u64>,
    /// Free on the file system of `/`.
    pub disk_free_mb: Option<u64>,
    /// Free on the file system of `/var`.
    pub var_free_mb: Option<u64>,
}
