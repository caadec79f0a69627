//! Throw-away VPSs on this machine.
