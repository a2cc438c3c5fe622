//! Says on standard error what a build does and how far it is: one line that changes on a terminal, a plain line now and then
//! elsewhere. Written past the test framework, which would show it only after a failure.

use std::io::{IsTerminal, Write, stderr};
use std::time::{Duration, Instant};

use super::family::Family;

/// How often a line is written where lines stay.
const PLAIN_INTERVAL: Duration = Duration::from_secs(15);
/// How often the line changes on a terminal.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(500);

pub struct Progress {
    title: String,
    terminal: bool,
    started: Instant,
    shown: Instant,
    downloaded: usize,
    compiled: usize,
    total: Option<usize>,
}

impl Progress {
    pub fn new(family: &Family) -> Self {
        let title = format!("{} {}", family.name, family.version());
        let now = Instant::now();
        Self {
            title,
            terminal: stderr().is_terminal(),
            started: now,
            shown: now,
            downloaded: 0,
            compiled: 0,
            total: None,
        }
    }

    /// Writes a line that stays.
    pub fn say(&mut self, what: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        // Nobody may be reading; a build goes on all the same.
        let _unread = writeln!(stderr(), "{clear}tools: {}: {what}", self.title);
        self.shown = Instant::now();
    }

    /// One more module is being downloaded.
    pub fn downloading(&mut self) {
        self.downloaded += 1;
    }

    /// One more package is being compiled.
    pub fn compiling(&mut self) {
        self.compiled += 1;
    }

    /// The program consists of so many packages.
    pub fn total(&mut self, packages: usize) {
        self.total = Some(packages);
    }

    /// Shows how far it is, if it is time for that.
    pub fn tick(&mut self) {
        let interval = if self.terminal { TERMINAL_INTERVAL } else { PLAIN_INTERVAL };
        if self.shown.elapsed() < interval {
            return;
        }
        let state = self.state();
        if self.terminal {
            let _unread = write!(stderr(), "\r\x1b[Ktools: {}: {state}", self.title);
            self.shown = Instant::now();
        } else {
            self.say(&state);
        }
    }

    /// Writes the closing line.
    pub fn done(&mut self) {
        let line = format!("built in {} s ({} packages compiled)", self.started.elapsed().as_secs(), self.compiled);
        self.say(&line);
    }

    fn state(&self) -> String {
        let seconds = self.started.elapsed().as_secs();
        match self.total {
            None if self.downloaded == 0 => format!("{seconds} s, reading the module"),
            None => format!("{seconds} s, {} modules downloaded", self.downloaded),
            // The compiler's own cache makes it fewer than all; what comes after the last is the linker.
            Some(total) => format!("{seconds} s, {} of at most {total} packages compiled", self.compiled),
        }
    }
}
