//! Against a real sshd on loopback, with keys of its own, as the user who runs the tests.

mod connect;
mod failures;
mod host_keys;
mod jump;
mod keys;
mod pushing;
mod sshd;
