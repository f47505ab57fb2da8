//! Fuzz targets that are property tests: one body, which random values drive in tests, and libFuzzer's bytes under `cargo xtask fuzz`.
//!
//! [`targets!`] makes of each a function and two tests: `seeded` runs cases that proptest makes (`PROPTEST_CASES` says how many) and makes a
//! failing one small, `corpus` runs the files of `fuzz/corpus/TARGET`. A file, or what libFuzzer comes up with, is what the strategy draws its
//! random numbers from, so that any bytes are a case. What a longer run finds is kept by laying its file into the corpus.
//!
//! It is no fuzzer: that is in `fuzz/`, whose targets call the same functions.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

#[doc(hidden)]
pub use proptest;

/// Where cases come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Random numbers; so many cases, or as many as `PROPTEST_CASES` says.
    Seeded(Option<u32>),
    /// The files below `fuzz/corpus` with this name, looked for in the parents of a directory.
    Corpus(&'a str, &'a str),
    /// These bytes: one case.
    Bytes(&'a [u8]),
}

impl Source<'_> {
    /// Runs `body` on each case.
    ///
    /// # Panics
    /// If it fails, and if there is no case.
    pub fn drive<S: Strategy>(self, strategy: &S, body: impl Fn(S::Value) -> Result<(), TestCaseError>) {
        match self {
            Source::Seeded(cases) => {
                let mut config = Config { failure_persistence: None, ..Config::default() };
                if let Some(most) = cases {
                    config.cases = config.cases.min(most);
                }
                if let Err(error) = TestRunner::new(config).run(strategy, body) {
                    panic!("{error}");
                }
            }
            Source::Corpus(name, below) => {
                let files = corpus(name, Path::new(below));
                assert!(!files.is_empty(), "fuzz/corpus/{name} holds no file");
                for file in files {
                    println!("{}", file.display());
                    one(strategy, &fs::read(&file).unwrap_or_default(), &body);
                }
            }
            Source::Bytes(bytes) => one(strategy, bytes, &body),
        }
    }
}

fn corpus(name: &str, below: &Path) -> Vec<PathBuf> {
    let corpus = below.ancestors().map(|parent| parent.join("fuzz/corpus").join(name)).find(|path| path.is_dir());
    let entries = corpus.and_then(|path| fs::read_dir(path).ok()).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// The case that `bytes` make: they are the seed, all of them folded into the 32 that it has.
///
/// proptest could take random numbers from the bytes themselves; but each choice between strategies then halves what is left of them, and when
/// they are used up there are zeroes, which some samplers reject for ever.
fn one<S: Strategy>(strategy: &S, bytes: &[u8], body: &impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { failure_persistence: None, ..Config::default() };
    let mut seed = [0_u8; 32];
    for (index, byte) in bytes.iter().enumerate() {
        let place = &mut seed[index % 32];
        *place = place.rotate_left(3) ^ byte;
    }
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let Ok(tree) = strategy.new_tree(&mut TestRunner::new_with_rng(config, random)) else { return };
    match body(tree.current()) {
        Ok(()) | Err(TestCaseError::Reject(_)) => (),
        Err(TestCaseError::Fail(reason)) => panic!("{reason}"),
    }
}

/// Fuzz targets, each with the name that its corpus and its program in `fuzz/` have:
///
/// ```
/// skep_fuzzing::targets! {
///     /// What it shows.
///     "sums": fn fuzz_sums(one in 0u32..1000, other in 0u32..1000) {
///         assert!(one + other < 2000);
///     }
/// }
/// fuzz_sums(skep_fuzzing::Source::Bytes(b"any bytes"));
/// ```
///
/// With a number after the name (`"sums", 64:`) there are never more seeded cases than that.
#[macro_export]
macro_rules! targets {
    ($(
        $(#[$meta:meta])*
        $target:literal $(, $cases:literal)?: fn $name:ident($($arg:pat in $strategy:expr),+ $(,)?) $body:block
    )+) => {$(
        $(#[$meta])*
        pub fn $name(source: $crate::Source<'_>) {
            source.drive(&($($strategy,)+), |($($arg,)+)| {
                $body
                Ok(())
            });
        }

        #[cfg(test)]
        mod $name {
            #[test]
            fn seeded() {
                let cases: &[u32] = &[$($cases)?];
                super::$name($crate::Source::Seeded(cases.first().copied()));
            }

            #[test]
            fn corpus() {
                super::$name($crate::Source::Corpus($target, env!("CARGO_MANIFEST_DIR")));
            }
        }
    )+};
}

#[cfg(test)]
#[path = "lib_test.rs"]
mod test;
