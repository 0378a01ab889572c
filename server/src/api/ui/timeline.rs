//! Drawings: when keys were and will be rotated, and how many requests there were. SVG with
//! attributes only, as the page's policy wants it.

use maud::{Markup, html};

use super::gather::{Key, Severity};
use super::time;
use crate::api::recent::{Answered, SAMPLE_INTERVAL};

const DAY: i64 = 24 * 60 * 60;
/// Days shown before and after today.
const DAYS_BEFORE: i64 = 180;
const DAYS_AFTER: i64 = 100;

const WIDTH: i64 = 840;
const LABELS_WIDTH: i64 = 180;
const ROW_HEIGHT: i64 = 22;
/// More rows than this are no drawing any more.
const MAX_ROWS: usize = 40;

/// A line for each key: a dot where a version was made, a ring where the next is due.
pub(super) fn rotations(keys: &[Key], now: i64) -> Markup {
    let shown = keys.get(..keys.len().min(MAX_ROWS)).unwrap_or_default();
    let rows = i64::try_from(shown.len()).unwrap_or(0);
    let height = (rows + 1) * ROW_HEIGHT + 8;
    let x = |time: i64| {
        let from_start =
            (time - (now - DAYS_BEFORE * DAY)).clamp(0, (DAYS_BEFORE + DAYS_AFTER) * DAY);
        LABELS_WIDTH + from_start * (WIDTH - LABELS_WIDTH - 12) / ((DAYS_BEFORE + DAYS_AFTER) * DAY)
    };
    html! {
        svg viewBox=(format!("0 0 {WIDTH} {height}")) role="img" aria-label="Rotations of each key" {
            @for days in [-180, -90, 0, 90] {
                @let at = x(now + days * DAY);
                line class=(if days == 0 { "today" } else { "grid" }) x1=(at) x2=(at) y1="0" y2=(height - ROW_HEIGHT) {}
                text class="axis" x=(at) y=(height - 6) text-anchor="middle" {
                    @if days == 0 { "today" } @else { (time::day(now + days * DAY)) }
                }
            }
            @for (row, key) in (0_i64..).zip(shown) {
                @let y = row * ROW_HEIGHT + ROW_HEIGHT / 2 + 2;
                text class="label" x="0" y=(y + 4) { (shorten(&key.name)) }
                @if let (Some(first), Some(last)) = (key.created.first(), key.created.last()) {
                    line class="life" x1=(x(*first)) x2=(x(key.due.map_or(now, |due| (now + due).max(*last)))) y1=(y) y2=(y) {}
                }
                @for created in key.created.iter().filter(|created| now - **created <= DAYS_BEFORE * DAY) {
                    circle class="made" cx=(x(*created)) cy=(y) r="4" {
                        title { (key.name) ": a version made on " (time::moment(*created)) }
                    }
                }
                @if let Some(due) = key.due.filter(|due| *due <= DAYS_AFTER * DAY) {
                    circle class=(if key.grade == Severity::Good { "due" } else { "due late" }) cx=(x(now + due)) cy=(y) r="4" {
                        title { (key.name) ": due " (time::moment(now + due)) }
                    }
                }
            }
        }
    }
}

/// Requests a second over the last hour: all of them, and above the line's foot those that were
/// denied or failed.
pub(super) fn rates(samples: &[Answered]) -> Markup {
    const HEIGHT: u64 = 120;
    const STEP: u64 = 2;
    let seconds = SAMPLE_INTERVAL.as_secs();
    let all = |s: &Answered| s.ok + s.denied + s.error;
    let most = samples.iter().map(all).max().unwrap_or(0).max(1);
    let column = |count: u64| (count * (HEIGHT - 10)).div_ceil(most);
    html! {
        svg viewBox=(format!("0 0 {} {}", 360 * STEP + 80, HEIGHT + 18)) role="img" aria-label="Requests a second in the last hour" {
            line class="grid" x1="0" x2=(360 * STEP) y1=(HEIGHT) y2=(HEIGHT) {}
            text class="axis" x=(360 * STEP + 6) y="14" { (rate(most, seconds)) "/s" }
            text class="axis" x="0" y=(HEIGHT + 14) { "an hour ago" }
            text class="axis" x=(360 * STEP) y=(HEIGHT + 14) text-anchor="end" { "now" }
            @for (at, sample) in (1_u64..).zip(samples.iter().take(360)) {
                @let left = (360 - at) * STEP;
                @if all(sample) > 0 {
                    rect class="answered" x=(left) width=(STEP) y=(HEIGHT - column(all(sample))) height=(column(all(sample))) {}
                }
                @if sample.denied + sample.error > 0 {
                    @let bad = column(sample.denied + sample.error).max(2);
                    rect class="refused" x=(left) width=(STEP) y=(HEIGHT - bad) height=(bad) {}
                }
            }
        }
    }
}

/// `count` in `seconds`, with one digit after the point.
pub(super) fn rate(count: u64, seconds: u64) -> String {
    let tenths = count * 10 / seconds.max(1);
    format!("{}.{}", tenths / 10, tenths % 10)
}

fn shorten(name: &str) -> String {
    const MAX_CHARS: usize = 24;
    if name.chars().count() <= MAX_CHARS {
        return name.to_owned();
    }
    name.chars()
        .take(MAX_CHARS - 1)
        .chain(['\u{2026}'])
        .collect()
}
