//! The contract between controller and agent: wire messages, ids, resource specs, plans, run events.
//!
//! Pure: nothing here reads a file, a socket or a clock. Generated types live in [`v1`] and are turned into
//! the types of this crate at the border (see [`convert`]); logic never sees them.

pub mod convert;
pub mod event;
pub mod guard;
pub mod host;
pub mod ids;
pub mod openpgp;
pub mod parcel;
pub mod plan;
pub mod sealed;
pub mod spec;
pub mod text;

/// Generated from `proto/postern/v1`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1 {
    tonic::include_proto!("postern.v1");

    /// The descriptor set of every service, for tests that walk all RPCs.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

/// The oldest wire version this build speaks.
pub const WIRE_MIN: u32 = 1;
/// The newest wire version this build speaks.
pub const WIRE_MAX: u32 = 1;
/// The largest piece of output in one [`event::LogFrame`], bytes.
pub const MAX_FRAME_BYTES: usize = 32 * 1024;
/// The largest plan that is accepted, bytes.
pub const MAX_PLAN_BYTES: usize = 1024 * 1024;
/// Output of one run that may be on its way without being acked, bytes.
pub const RUN_WINDOW_BYTES: usize = 1024 * 1024;
/// Output of one agent that may be on its way without being acked, bytes.
pub const AGENT_WINDOW_BYTES: usize = 8 * 1024 * 1024;
/// The name in every controller certificate. Addresses change; this does not.
pub const SERVER_NAME: &str = "controller.postern.internal";
/// The port agents dial when an address names none.
pub const DEFAULT_PORT: u16 = 7300;
/// Metadata of a gRPC status that says more than its code.
pub const REFUSAL_KEY: &str = "postern-refusal";
/// Value of [`REFUSAL_KEY`]: this identity is revoked. The only refusal after which an agent stops trying.
pub const REFUSAL_REVOKED: &str = "revoked";
