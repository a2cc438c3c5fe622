//! Starts the real servers that Vitrine's tests and demo run against.
