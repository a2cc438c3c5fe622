//! One target under libFuzzer: the one that `VITRINE_FUZZ_TARGET` names.

#![no_main]
#![expect(clippy::expect_used, reason = "without a target there is nothing to run")]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vitrine_fuzz::{Target, target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("VITRINE_FUZZ_TARGET").expect("VITRINE_FUZZ_TARGET names the target");
    target(&name).expect("VITRINE_FUZZ_TARGET is one of vitrine_fuzz::TARGETS")
});

fuzz_target!(|data: &[u8]| {
    (TARGET.run)(data);
});
