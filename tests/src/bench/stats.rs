//! Samples, their order statistics, and the file they are kept in.
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

/// The value below which `percent` of 100 of the samples lie (nearest rank); 0 for no samples.
pub fn percentile(samples: &[Duration], percent: u32) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent as usize).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

/// The 50th percentile.
pub fn median(samples: &[Duration]) -> Duration {
    percentile(samples, 50)
}

/// Named series, sampled in turns.
#[derive(Debug, Clone)]
pub struct Samples {
    names: Vec<&'static str>,
    series: Vec<Vec<Duration>>,
}

impl Samples {
    /// No samples yet of each of these.
    pub fn new(names: &[&'static str]) -> Self {
        Samples { names: names.to_vec(), series: vec![Vec::new(); names.len()] }
    }

    /// One more sample of the series with that index.
    pub fn add(&mut self, index: usize, sample: Duration) {
        if let Some(series) = self.series.get_mut(index) {
            series.push(sample);
        }
    }

    /// The samples of one series.
    pub fn series(&self, index: usize) -> &[Duration] {
        self.series.get(index).map_or(&[], Vec::as_slice)
    }

    /// One line a series: count, median, 99th percentile, least and most, in milliseconds.
    pub fn table(&self) -> String {
        let mut text =
            format!("{:<34}{:>7}{:>11}{:>11}{:>11}{:>11}\n", "ms", "n", "p50", "p99", "min", "max");
        let ms = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1000.0);
        for (name, series) in self.names.iter().zip(&self.series) {
            let least = series.iter().min().copied().unwrap_or_default();
            let most = series.iter().max().copied().unwrap_or_default();
            let (p50, p99) = (median(series), percentile(series, 99));
            // A String takes whatever is written.
            let _ = writeln!(
                text,
                "{name:<34}{:>7}{:>11}{:>11}{:>11}{:>11}",
                series.len(),
                ms(p50),
                ms(p99),
                ms(least),
                ms(most)
            );
        }
        text
    }

    /// One line a series: count, least, median and most in milliseconds, and how many times the median of the series
    /// `base` its own is. Series without samples are left out.
    pub fn table_beside(&self, base: usize) -> String {
        let mut text =
            format!("{:<34}{:>5}{:>11}{:>11}{:>11}{:>9}\n", "ms", "n", "min", "median", "max", "ratio");
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1000.0);
        for (index, (name, series)) in self.names.iter().zip(&self.series).enumerate() {
            let (Some(least), Some(most)) = (series.iter().min(), series.iter().max()) else { continue };
            let _ = writeln!(
                text,
                "{name:<34}{:>5}{:>11}{:>11}{:>11}{:>9.2}",
                series.len(),
                ms(*least),
                ms(median(series)),
                ms(*most),
                self.ratio(index, base)
            );
        }
        text
    }

    /// Every sample in milliseconds, in the order taken.
    pub fn json(&self) -> serde_json::Value {
        let ms = |time: &Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let series = self.names.iter().zip(&self.series);
        series
            .map(|(name, all)| json!({"name": name, "ms": all.iter().map(ms).collect::<Vec<_>>()}))
            .collect()
    }

    /// The quotient of two series' medians.
    pub fn ratio(&self, of: usize, to: usize) -> f64 {
        median(self.series(of)).as_secs_f64() / median(self.series(to)).as_secs_f64()
    }

    /// Writes every sample as a line `series,index,milliseconds`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut text = String::from("series,index,ms\n");
        for (name, series) in self.names.iter().zip(&self.series) {
            for (index, sample) in series.iter().enumerate() {
                let _ = writeln!(text, "{name},{index},{:.4}", sample.as_secs_f64() * 1000.0);
            }
        }
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let hundred = ms(&(1..=100).rev().collect::<Vec<_>>());
        assert_eq!(median(&hundred), Duration::from_millis(50));
        assert_eq!(percentile(&hundred, 99), Duration::from_millis(99));
        assert_eq!(percentile(&hundred, 100), Duration::from_millis(100));
        assert_eq!(median(&ms(&[3, 1, 2])), Duration::from_millis(2));
        assert_eq!(percentile(&ms(&[7]), 99), Duration::from_millis(7));
        assert_eq!(median(&[]), Duration::ZERO);
    }

    #[test]
    fn raw_samples_are_kept_and_compared() {
        let mut samples = Samples::new(&["ours", "theirs"]);
        for (ours, theirs) in [(10, 40), (20, 50), (30, 60)] {
            samples.add(0, Duration::from_millis(ours));
            samples.add(1, Duration::from_millis(theirs));
        }
        assert!((samples.ratio(0, 1) - 0.4).abs() < 1e-9);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.csv");
        samples.save(&file).unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        assert_eq!(text.lines().count(), 7);
        assert!(text.contains("\ntheirs,2,60.0000\n"), "{text}");
        assert_eq!(samples.table().lines().count(), 3);
        assert_eq!(samples.json()[1], json!({"name": "theirs", "ms": [40.0, 50.0, 60.0]}));
    }

    #[test]
    fn series_are_shown_beside_another() {
        let mut samples = Samples::new(&["ssh", "ours", "not sampled"]);
        samples.add(0, Duration::from_millis(200));
        samples.add(1, Duration::from_millis(50));
        let table = samples.table_beside(0);
        let last: Vec<_> = table.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(last, ["ours", "1", "50.0", "50.0", "50.0", "0.25"]);
    }
}
