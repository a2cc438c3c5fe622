//! HTTP sources against a server that misbehaves on demand. Each protection has a test that fails without it.

mod ends;
mod policy;
mod resume;
mod several;
mod support;
mod trust;
