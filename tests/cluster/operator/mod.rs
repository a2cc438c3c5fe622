//! The operator against a real API server. Agents are played by the tests (see `agent`), so that they do what is asked at the moment it
//! is asked; everything else is real: definitions, rules, admission policies, roles, tokens, leases, finalizers, garbage collection.
//!
//! All tests but those that disturb the API server share one control plane. Each has namespaces, nodes and stores of its own (see `lab`)
//! and operators that see nothing else.

mod admission;
mod agent;
mod daemonset;
mod gitops;
mod images;
mod lab;
mod operators;
mod schema;
mod stores;
