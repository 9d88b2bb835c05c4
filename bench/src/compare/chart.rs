//! The comparison as a chart: panels of bars, in SVG that needs no scripts, fonts or style sheets.

use std::fmt::Write;

use super::result::{Comparison, ContenderResult, Figure};
use crate::stats::{Spread, format_micros, thousands, three_digits};

const WIDTH: f64 = 860.0;
const MARGIN: f64 = 28.0;
const PANEL_GAP: f64 = 36.0;
const PANEL_WIDTH: f64 = (WIDTH - 2.0 * MARGIN - PANEL_GAP) / 2.0;
const HEADER_HEIGHT: f64 = 78.0;
const PANEL_TITLE_HEIGHT: f64 = 46.0;
const ROW_HEIGHT: f64 = 28.0;
const BAR_HEIGHT: f64 = 17.0;
/// Room for names left of the bars, and for values right of the longest.
const NAME_WIDTH: f64 = 78.0;
const VALUE_WIDTH: f64 = 140.0;

const INK: &str = "#1b1f24";
const FAINT: &str = "#636c76";
const RULE: &str = "#d1d9e0";
const OWN_BAR: &str = "#0f766e";
const PEER_BAR: &str = "#a9b4c0";

struct Panel {
    title: String,
    subtitle: String,
    figure: Figure,
    format: fn(f64) -> String,
    /// Whether meshring's ratio stands beside the peers' values.
    with_ratio: bool,
}

/// Draws the comparison.
pub(super) fn draw(comparison: &Comparison) -> String {
    let rows = comparison.contenders.len() as f64;
    let panel_height = PANEL_TITLE_HEIGHT + rows * ROW_HEIGHT;
    let panels = panels(comparison);
    let panel_rows = panels.len().div_ceil(2) as f64;
    let height = HEADER_HEIGHT + panel_rows * (panel_height + PANEL_GAP * 0.7) + 34.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         role=\"img\" font-family=\"Inter, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif\" font-size=\"13\">\n"
    );
    let title = title(comparison);
    // Writing to a string cannot fail.
    let _ = writeln!(svg, "<title>{}</title>", escape(&title));
    let _ = writeln!(svg, "<rect width=\"{WIDTH}\" height=\"{height}\" rx=\"10\" fill=\"#ffffff\"/>");
    text(&mut svg, Text { x: MARGIN, y: 38.0, size: 19.0, weight: 650, fill: INK, anchor: "start" }, &title);
    let (settings, machine) = split_caption(&comparison.caption());
    text(&mut svg, Text { x: MARGIN, y: 59.0, size: 12.0, weight: 400, fill: FAINT, anchor: "start" }, &settings);
    for (index, panel) in panels.iter().enumerate() {
        let x = MARGIN + (index % 2) as f64 * (PANEL_WIDTH + PANEL_GAP);
        let y = HEADER_HEIGHT + (index / 2) as f64 * (panel_height + PANEL_GAP * 0.7);
        draw_panel(&mut svg, panel, comparison, x, y);
    }
    let foot = Text { x: MARGIN, y: height - 18.0, size: 11.0, weight: 400, fill: FAINT, anchor: "start" };
    text(&mut svg, foot, &machine);
    svg.push_str("</svg>\n");
    svg
}

fn title(comparison: &Comparison) -> String {
    let names: Vec<&str> = comparison.contenders.iter().map(|contender| contender.name).collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} and {last}, side by side", others.join(", ")),
        _ => names.concat(),
    }
}

/// The caption's part on what was measured, and the rest: how and where.
fn split_caption(caption: &str) -> (String, String) {
    let (what, how) = caption.split_once("; ").unwrap_or((caption, ""));
    let mut how = how.chars();
    let how = how.next().map(|first| first.to_uppercase().chain(how).collect()).unwrap_or_default();
    (what.to_owned(), how)
}

fn panels(comparison: &Comparison) -> Vec<Panel> {
    let micros: fn(f64) -> String = format_micros;
    let megabytes: fn(f64) -> String = |bytes| format!("{} MB", three_digits(bytes / 1e6));
    let unit = comparison.settings.protocol.unit();
    let cpu_time = format!("CPU time per {unit}");
    let panel = |title: &str, subtitle: &str, figure, format, with_ratio| Panel {
        title: title.to_owned(),
        subtitle: subtitle.to_owned(),
        figure,
        format,
        with_ratio,
    };
    let saturated = "at full load (closed loop), user and kernel; less is better";
    let mut panels = vec![panel(&cpu_time, saturated, Figure::CpuUsPerRequest, micros, true)];
    let throughput = panel(
        &format!("{}{}s per second", unit[..1].to_uppercase(), &unit[1..]),
        "closed loop; more is better",
        Figure::RequestsPerS,
        |value| thousands(value.round() as u64),
        false,
    );
    if let Some(rate) = comparison.settings.constant_rate {
        let at = format!("at {} {unit}s per second; less is better", thousands(rate.round() as u64));
        panels.extend([
            panel(&cpu_time, &at, Figure::ConstantRateCpuUsPerRequest, micros, true),
            throughput,
            panel("Latency, 99th percentile", &at, Figure::ConstantRateP99Us, micros, false),
        ]);
    } else {
        let at = "closed loop; less is better";
        panels.extend([throughput, panel("Latency, 99th percentile", at, Figure::ClosedLoopP99Us, micros, false)]);
    }
    let resident = "resident; less is better";
    panels.push(panel("Memory, idle", resident, Figure::IdleRssBytes, megabytes, false));
    panels.push(panel("Memory under load", resident, Figure::LoadedRssBytes, megabytes, false));
    panels
}

fn draw_panel(svg: &mut String, panel: &Panel, comparison: &Comparison, x: f64, y: f64) {
    let heading = Text { x, y: y + 14.0, size: 14.0, weight: 600, fill: INK, anchor: "start" };
    text(svg, heading, &panel.title);
    let below = Text { x, y: y + 31.0, size: 11.5, weight: 400, fill: FAINT, anchor: "start" };
    text(svg, below, &panel.subtitle);
    let value_of = |contender: &ContenderResult| contender.figures.get(&panel.figure).map(|spread| spread.median);
    let largest = comparison.contenders.iter().filter_map(value_of).fold(0.0, f64::max);
    let bars_x = x + NAME_WIDTH;
    let bars_width = PANEL_WIDTH - NAME_WIDTH - VALUE_WIDTH;
    for (row, contender) in comparison.contenders.iter().enumerate() {
        let top = y + PANEL_TITLE_HEIGHT + row as f64 * ROW_HEIGHT;
        let baseline = top + BAR_HEIGHT - 4.0;
        let (fill, weight) = if contender.is_meshring { (OWN_BAR, 600) } else { (PEER_BAR, 400) };
        let name = Text { x: bars_x - 9.0, y: baseline, size: 12.5, weight, fill: INK, anchor: "end" };
        text(svg, name, contender.name);
        let Some(value) = value_of(contender) else { continue };
        let width = if largest > 0.0 { (value / largest * bars_width).max(1.5) } else { 1.5 };
        let _ = writeln!(
            svg,
            "<rect x=\"{bars_x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"{BAR_HEIGHT}\" rx=\"2\" fill=\"{fill}\"/>"
        );
        let mut label = (panel.format)(value);
        if let (true, Some(Spread { median, .. })) = (panel.with_ratio, contender.ratio_of_meshring.get(&panel.figure))
        {
            let _ = write!(label, " · ours {median:.2}×");
        }
        let value = Text { x: bars_x + width + 7.0, y: baseline, size: 12.5, weight, fill: INK, anchor: "start" };
        text(svg, value, &label);
    }
    let rule_top = y + PANEL_TITLE_HEIGHT - 5.0;
    let rule_bottom = rule_top + comparison.contenders.len() as f64 * ROW_HEIGHT;
    let _ =
        writeln!(svg, "<path d=\"M{bars_x:.1} {rule_top:.1}V{rule_bottom:.1}\" stroke=\"{RULE}\" stroke-width=\"1\"/>");
}

struct Text {
    x: f64,
    y: f64,
    size: f64,
    weight: u32,
    fill: &'static str,
    anchor: &'static str,
}

fn text(svg: &mut String, at: Text, content: &str) {
    let Text { x, y, size, weight, fill, anchor } = at;
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" font-weight=\"{weight}\" fill=\"{fill}\" \
         text-anchor=\"{anchor}\">{}</text>",
        escape(content)
    );
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::result::tests::example;
    use super::*;

    #[test]
    fn the_chart_has_every_contender_in_every_panel_and_escapes_text() {
        let svg = draw(&example());
        assert_eq!(svg.matches(">meshring<").count(), 6, "{svg}");
        assert_eq!(svg.matches(">Peer<").count(), 6, "{svg}");
        // A background and two bars in each panel.
        assert_eq!(svg.matches("<rect").count(), 1 + 2 * 6, "{svg}");
        assert!(svg.contains("CPU &lt;1&gt;"), "{svg}");
        assert!(svg.contains("30.0 µs · ours 0.80×"), "{svg}");
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    }

    #[test]
    fn bars_are_as_long_as_their_values_are_large() {
        let svg = draw(&example());
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains(OWN_BAR) || line.contains(PEER_BAR))
            .map(|line| line.split("width=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap())
            .collect();
        // CPU per request: 22 and 30 µs.
        assert!((widths[0] / widths[1] - 22.0 / 30.0).abs() < 0.01, "{widths:?}");
    }
}
