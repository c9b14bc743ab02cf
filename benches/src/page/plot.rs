//! Three kinds of plots, as SVG. Colours come from classes of the page's style.

use std::fmt::Write;

use crate::report::Spread;

/// For text between tags and in attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number with k or M.
pub fn si(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e3 => format!("{}k", value / 1e3),
        value => format!("{value}"),
    }
}

/// Without zeros that say nothing.
fn number(value: f64) -> String {
    if value >= 1000.0 {
        return si(value);
    }
    let text = format!("{value:.3}");
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 40.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 24.0;

/// Dots in groups, each with its spread, on a logarithmic scale: rates over sizes differ by a factor of a hundred.
pub struct Groups {
    names: Vec<String>,
    unit: &'static str,
    dots: Vec<(usize, &'static str, Spread, String)>,
    marks: Vec<(usize, f64)>,
}

impl Groups {
    /// Groups with these names.
    pub fn new(names: Vec<String>, unit: &'static str) -> Self {
        Self { names, unit, dots: vec![], marks: vec![] }
    }

    /// A dot; the text is shown when one points at it.
    pub fn add(&mut self, group: usize, class: &'static str, spread: Spread, title: String) {
        self.dots.push((group, class, spread, title));
    }

    /// A dash over a whole group.
    pub fn mark(&mut self, group: usize, value: f64) {
        self.marks.push((group, value));
    }

    pub fn svg(&self) -> String {
        let spreads = self.dots.iter().flat_map(|dot| [dot.2.least, dot.2.most]);
        let Some(scale) = Scale::over(spreads.chain(self.marks.iter().map(|mark| mark.1))) else {
            return String::new();
        };
        let mut svg = open(WIDTH, HEIGHT);
        scale.axis(&mut svg, self.unit);
        let each = (WIDTH - LEFT) / self.names.len().max(1) as f64;
        for (group, name) in self.names.iter().enumerate() {
            let left = LEFT + each * group as f64;
            let middle = left + each / 2.0;
            let _ = write!(
                svg,
                "<text class=\"name\" text-anchor=\"middle\" x=\"{middle:.1}\" y=\"{:.1}\">{}</text>",
                HEIGHT - 8.0,
                escape(name)
            );
            for (_, value) in self.marks.iter().filter(|mark| mark.0 == group) {
                let y = scale.y(*value);
                line(&mut svg, "copies", left + each * 0.12, y, left + each * 0.88, y);
            }
            let dots: Vec<_> = self.dots.iter().filter(|dot| dot.0 == group).collect();
            let step = (each * 0.7 / dots.len().max(1) as f64).min(16.0);
            let count = dots.len() as f64;
            for (index, (_, class, spread, title)) in dots.into_iter().enumerate() {
                // Side by side, so that none hides another.
                let x = middle + step * (index as f64 - (count - 1.0) / 2.0);
                line(&mut svg, &format!("range {class}"), x, scale.y(spread.least), x, scale.y(spread.most));
                let (cy, title) = (scale.y(spread.median), escape(title));
                let _ = write!(
                    svg,
                    "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{cy:.1}\" r=\"4.5\"><title>{title}</title></circle>"
                );
            }
        }
        svg + "</svg>"
    }
}

/// A logarithmic vertical axis between two round numbers.
struct Scale {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Scale {
    /// Over these values, as far as they are above zero.
    fn over(values: impl Iterator<Item = f64>) -> Option<Self> {
        let (least, most) = values
            .filter(|value| *value > 0.0 && value.is_finite())
            .fold((f64::INFINITY, 0.0_f64), |(least, most), value| (least.min(value), most.max(value)));
        if most == 0.0 {
            return None;
        }
        // 1, 2 and 5 of each decade.
        let steps: Vec<f64> = (-9..12).flat_map(|power| [1.0, 2.0, 5.0].map(|n| n * 10_f64.powi(power))).collect();
        let first = steps.iter().rposition(|step| *step <= least).unwrap_or(0);
        let last = steps.iter().position(|step| *step >= most).unwrap_or(steps.len() - 1).max(first + 1);
        let shown = &steps[first..=last];
        // Decades only, where there are many.
        let ticks = if shown.len() > 8 {
            shown.iter().copied().filter(|step| is_decade(*step)).collect()
        } else {
            shown.to_vec()
        };
        Some(Self { low: steps[first].ln(), high: steps[last].ln(), ticks })
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value.max(1e-12).ln() - self.low) / (self.high - self.low);
        TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - share.clamp(0.0, 1.0))
    }

    fn axis(&self, svg: &mut String, unit: &str) {
        let _ = write!(svg, "<text x=\"0\" y=\"10\">{unit}</text>");
        for tick in &self.ticks {
            let y = self.y(*tick);
            line(svg, "grid-line", LEFT, y, WIDTH, y);
            let _ = write!(
                svg,
                "<text text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{}</text>",
                LEFT - 5.0,
                y + 4.0,
                number(*tick)
            );
        }
    }
}

fn is_decade(value: f64) -> bool {
    let power = value.log10();
    (power - power.round()).abs() < 1e-6
}

/// A line for each back-end over a few percentiles, on a logarithmic scale.
pub struct Lines {
    names: [&'static str; 4],
    unit: &'static str,
    lines: Vec<(&'static str, [f64; 4], String)>,
}

impl Lines {
    /// Points with these names.
    pub fn new(names: [&'static str; 4], unit: &'static str) -> Self {
        Self { names, unit, lines: vec![] }
    }

    /// A line.
    pub fn add(&mut self, class: &'static str, points: [f64; 4], name: &str) {
        self.lines.push((class, points, name.into()));
    }

    pub fn svg(&self) -> String {
        let Some(scale) = Scale::over(self.lines.iter().flat_map(|line| line.1)) else { return String::new() };
        let mut svg = open(WIDTH, HEIGHT);
        scale.axis(&mut svg, self.unit);
        let x = |index: usize| LEFT + (WIDTH - LEFT) * (0.1 + 0.8 * index as f64 / 3.0);
        for (index, name) in self.names.iter().enumerate() {
            let _ = write!(
                svg,
                "<text class=\"name\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{name}</text>",
                x(index),
                HEIGHT - 8.0
            );
        }
        for (class, points, name) in &self.lines {
            let mut path = String::new();
            for (index, value) in points.iter().enumerate() {
                let _ = write!(path, "{}{:.1} {:.1}", if index == 0 { 'M' } else { 'L' }, x(index), scale.y(*value));
            }
            let _ = write!(svg, "<path class=\"{class}\" d=\"{path}\"/>");
            for (index, value) in points.iter().enumerate() {
                let _ = write!(
                    svg,
                    "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{} {}: {value:.1} {}</title></circle>",
                    x(index),
                    scale.y(*value),
                    escape(name),
                    self.names[index],
                    self.unit
                );
            }
        }
        svg + "</svg>"
    }
}

/// A row for each cell, a dot with its range for each back-end, on a logarithmic scale around 1.
pub struct Dots {
    rows: Vec<String>,
    dots: Vec<(usize, &'static str, Spread, String)>,
}

impl Dots {
    /// Rows with these names.
    pub fn new(rows: Vec<String>) -> Self {
        Self { rows, dots: vec![] }
    }

    /// A dot in a row.
    pub fn add(&mut self, row: usize, class: &'static str, spread: Spread, title: &str) {
        self.dots.push((row, class, spread, title.into()));
    }

    pub fn svg(&self) -> String {
        const EACH: f64 = 22.0;
        const NAMES: f64 = 190.0;
        const WIDE: f64 = 1080.0;
        const ALL: [f64; 11] = [0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0];
        let least = self.dots.iter().map(|dot| dot.2.least).fold(0.5, f64::min).max(0.05);
        let most = self.dots.iter().map(|dot| dot.2.most).fold(2.0, f64::max).min(60.0);
        let (low, high) = ((least * 0.92).ln(), (most * 1.08).ln());
        let x = |ratio: f64| NAMES + (WIDE - NAMES - 10.0) * ((ratio.max(least).min(most).ln() - low) / (high - low));
        let bottom = 24.0 + EACH * self.rows.len() as f64;
        let mut svg = open(WIDE, bottom + 22.0);
        for tick in ALL.into_iter().filter(|tick| (least..=most).contains(tick)) {
            line(&mut svg, if tick == 1.0 { "one" } else { "grid-line" }, x(tick), 20.0, x(tick), bottom);
            for y in [13.0, bottom + 15.0] {
                let _ = write!(svg, "<text text-anchor=\"middle\" x=\"{:.1}\" y=\"{y:.1}\">{tick}</text>", x(tick));
            }
        }
        for (row, name) in self.rows.iter().enumerate() {
            let middle = 24.0 + EACH * (row as f64 + 0.5);
            let _ = write!(svg, "<text class=\"name\" x=\"0\" y=\"{:.1}\">{}</text>", middle + 4.0, escape(name));
            let dots: Vec<_> = self.dots.iter().filter(|dot| dot.0 == row).collect();
            let count = dots.len() as f64;
            for (index, (_, class, spread, title)) in dots.into_iter().enumerate() {
                // Side by side, so that none hides another.
                let y = middle + 8.0 * (index as f64 - (count - 1.0) / 2.0);
                line(&mut svg, &format!("range {class}"), x(spread.least), y, x(spread.most), y);
                let (cx, title) = (x(spread.median), escape(title));
                let _ = write!(
                    svg,
                    "<circle class=\"{class}\" cx=\"{cx:.1}\" cy=\"{y:.1}\" r=\"4\"><title>{title}</title></circle>"
                );
            }
        }
        svg + "</svg>"
    }
}

fn open(width: f64, height: f64) -> String {
    format!("<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\">")
}

fn line(svg: &mut String, class: &str, x1: f64, y1: f64, x2: f64, y2: f64) {
    let _ = write!(svg, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_has_round_ends_around_all_values() {
        let ticks = |values: &[f64]| {
            Scale::over(values.iter().copied()).map(|s| s.ticks.into_iter().map(number).collect::<Vec<_>>())
        };
        assert_eq!(ticks(&[0.0, 3.0, 9.0]), Some(vec!["2".into(), "5".into(), "10".into()]));
        assert_eq!(ticks(&[1100.0, 9000.0]), Some(vec!["1k".into(), "2k".into(), "5k".into(), "10k".into()]));
        assert_eq!(ticks(&[0.03, 40.0]), Some(vec!["0.1".into(), "1".into(), "10".into()]));
        assert_eq!(ticks(&[0.0]), None);
    }

    #[test]
    fn names_cannot_break_the_page() {
        let mut groups = Groups::new(vec!["<64>".into()], "Mpps");
        groups.add(0, "ovs", Spread { median: 2.0, least: 1.0, most: 3.0 }, "a \"b\" & <c>".into());
        let svg = groups.svg();
        assert!(svg.contains("&lt;64&gt;") && svg.contains("a &quot;b&quot; &amp; &lt;c&gt;"), "{svg}");
    }
}
