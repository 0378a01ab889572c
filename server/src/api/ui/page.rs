//! The page.

use std::time::UNIX_EPOCH;

use maud::{DOCTYPE, Markup, html};

use super::gather::{Fact, Key, Severity, Status};
use super::{time, timeline};
use crate::api::recent::{Denial, SAMPLE_INTERVAL};

/// The page asks for itself again this often, seconds.
const REFRESH_SECONDS: u32 = 15;

pub(super) fn render(status: &Status) -> Markup {
    let (class, word) = match status.grade() {
        Severity::Good => ("good", "All is well"),
        Severity::Watch => ("watch", "Worth a look"),
        Severity::Bad => ("bad", "Needs somebody"),
    };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="refresh" content=(REFRESH_SECONDS);
                title { "Strongroom: " (word) }
                link rel="stylesheet" href="style.css";
            }
            body {
                header {
                    h1 { "Strongroom" }
                    p class=(format!("verdict {class}")) { (word) }
                    p class="moment" { (time::moment(status.now)) }
                }
                main {
                    (facts(&status.facts))
                    (rates(status))
                    (keys(status))
                    section id="rotations" {
                        h2 { "Rotations" }
                        (timeline::rotations(&status.keys, status.now))
                        p class="legend" { "A dot: a version was made. A ring: the next one is due." }
                    }
                    (denials(&status.denials))
                }
            }
        }
    }
}

fn facts(facts: &[Fact]) -> Markup {
    html! {
        section id="health" {
            h2 { "Health" }
            dl {
                @for fact in facts {
                    dt { (fact.name) }
                    dd class=(class(fact.grade)) { (fact.value) }
                }
            }
        }
    }
}

fn rates(status: &Status) -> Markup {
    let seconds = SAMPLE_INTERVAL.as_secs();
    html! {
        section id="requests" {
            h2 { "Requests" }
            (timeline::rates(&status.samples))
            @if let Some(last) = status.samples.first() {
                p class="legend" {
                    "In the last " (seconds) " seconds: " (timeline::rate(last.ok, seconds)) "/s answered, "
                    (timeline::rate(last.denied, seconds)) "/s denied, " (timeline::rate(last.error, seconds)) "/s failed."
                }
            }
        }
    }
}

fn keys(status: &Status) -> Markup {
    html! {
        section id="keys" {
            h2 { "Keys" }
            @if status.keys.is_empty() {
                p { "There are none yet." }
            } @else {
                table {
                    thead {
                        tr { th { "Name" } th { "Type" } th { "Versions" } th { "Age of the latest" } th { "Next rotation" } th { "State" } }
                    }
                    tbody {
                        @for key in &status.keys { (row(key, status.now)) }
                    }
                }
                @if status.more_keys > 0 {
                    p class="legend" { "And " (status.more_keys) " more; those that need a look are among the ones shown." }
                }
            }
        }
    }
}

fn row(key: &Key, now: i64) -> Markup {
    html! {
        tr class=(class(key.grade)) {
            td { (key.name) }
            td { (key.kind) }
            td { (key.versions) }
            td {
                @if let Some(created) = key.created.last() { (time::span(now - created)) }
            }
            td {
                @match key.due {
                    Some(left) if left >= 0 => { "in " (time::span(left)) }
                    Some(left) => { "overdue for " (time::span(-left)) }
                    None if key.grade == Severity::Bad => { "stopped: the clock is, or was, wrong" }
                    None => { "by hand" }
                }
            }
            td { (key.state) }
        }
    }
}

fn denials(denials: &[Denial]) -> Markup {
    html! {
        section id="denials" {
            h2 { "Recent denials" }
            @if denials.is_empty() {
                p { "None since the start." }
            } @else {
                table {
                    thead {
                        tr { th { "Time" } th { "Who" } th { "Operation" } th { "Key" } th { "Why" } }
                    }
                    tbody {
                        @for denial in denials {
                            @let seconds = denial.time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
                            tr {
                                td { (time::moment(i64::try_from(seconds).unwrap_or(0))) }
                                td { (denial.identity) }
                                td { (denial.operation) }
                                td { (denial.key) }
                                td { (denial.reason) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn class(grade: Severity) -> &'static str {
    match grade {
        Severity::Good => "good",
        Severity::Watch => "watch",
        Severity::Bad => "bad",
    }
}
