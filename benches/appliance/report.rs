//! Figures, printed as they come and saved under `target/bench/`.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::load::Rate;

/// The ratios that SPECIFICATION.md promises, at least.
const PROMISED: [(&str, f64); 3] = [
    ("hsm batch 256 x64: https items/s vs raw C_Decrypt/s", 0.9),
    (
        "memory batch 1 x64: https requests/s vs hello requests/s",
        0.75,
    ),
    (
        "hsm batch 1 x64: https requests/s vs hello + C_Decrypt requests/s",
        1.0,
    ),
];

/// All figures of one run.
#[derive(Default)]
pub struct Report {
    figures: Map<String, Value>,
    text: String,
}

/// Two things measured in turns.
#[derive(Default)]
pub struct Pair {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Pair {
    /// One turn of each.
    pub fn add(&mut self, ours: f64, theirs: f64) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    fn ratio(&self) -> f64 {
        median(
            self.ours
                .iter()
                .zip(&self.theirs)
                .map(|(ours, theirs)| ours / theirs)
                .collect(),
        )
    }
}

impl Report {
    /// A single figure.
    pub fn note(&mut self, name: &str, value: f64) {
        self.line(&format!("{name:<64} {value:>12.1}"));
        self.figures.insert(name.to_owned(), json!(value));
    }

    /// A ratio, with the medians it came from.
    pub fn pair(&mut self, name: &str, pair: &Pair) {
        let (ours, theirs, ratio) = (
            median(pair.ours.clone()),
            median(pair.theirs.clone()),
            pair.ratio(),
        );
        let promised = PROMISED.iter().find(|(promise, _)| *promise == name);
        let verdict = promised.map_or_else(String::new, |(_, least)| {
            let kept = if ratio >= *least { "kept" } else { "NOT kept" };
            format!("   promised {:.0} %: {kept}", least * 100.0)
        });
        self.line(&format!(
            "{name:<64} {ours:>12.0} / {theirs:>8.0} = {:>6.1} %{verdict}",
            ratio * 100.0
        ));
        self.figures.insert(
            name.to_owned(),
            json!({ "ours": ours, "theirs": theirs, "ratio": ratio }),
        );
    }

    /// Latencies, saved only.
    pub fn latency(&mut self, name: &str, rate: &Rate) {
        let value = json!({ "median_us": rate.median.as_micros() as u64, "p99_us": rate.p99.as_micros() as u64 });
        self.figures.insert(format!("{name}: latency"), value);
    }

    /// Saves everything. `whole`: each promise must have been measured.
    pub fn finish(self, whole: bool) {
        for (promise, _) in PROMISED {
            assert!(
                !whole || self.figures.contains_key(promise),
                "never measured: {promise}"
            );
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        fs::create_dir_all(&folder).expect("target/bench");
        fs::write(
            folder.join("appliance.json"),
            Value::Object(self.figures).to_string(),
        )
        .expect("the JSON report");
        fs::write(folder.join("appliance.txt"), &self.text).expect("the text report");
        println!("saved as {}/appliance.{{txt,json}}", folder.display());
    }

    fn line(&mut self, line: &str) {
        println!("{line}");
        let _ = writeln!(self.text, "{line}");
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
