//! The figures as a drawing: operations a second over operations per byte, both logarithmic, under the ceilings.

use super::{Class, Roofline};
use plinth_platform::text::bytes;
use std::fmt::Write;

const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 720.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 84.0;
/// Size of all text but the title, in pixels.
const TEXT: f64 = 13.0;
/// One for each phase: dark enough for text on white, and apart for those who do not see red or green.
const COLOURS: [&str; 6] = [
    "#1f5fa8", "#b84a00", "#007a5a", "#7a3b9a", "#8a6d00", "#444444",
];

/// An SVG document.
pub fn draw(roofline: &Roofline) -> String {
    let mut drawing = Drawing::new(roofline);
    drawing.frame(roofline);
    // Everything that has its place before the first name seeks one.
    let ceilings = drawing.ceilings(roofline);
    let dots = drawing.dots(roofline);
    ceilings.iter().for_each(|c| drawing.name_ceiling(c));
    dots.iter().for_each(|dot| drawing.name_dot(dot));
    drawing.svg.push_str("</svg>\n");
    drawing.svg
}

/// A rectangle of pixels: left, top, right, bottom.
#[derive(Clone, Copy, Debug)]
struct Rect(f64, f64, f64, f64);

impl Rect {
    fn around((x, y): (f64, f64), radius: f64) -> Self {
        Self(x - radius, y - radius, x + radius, y + radius)
    }

    /// Of a text whose left end is at `x` and whose middle line is at `y`.
    fn of_text(text: &str, x: f64, y: f64) -> Self {
        Self(x, y - 0.6 * TEXT, x + width_of(text), y + 0.6 * TEXT)
    }

    /// Area that both have.
    fn overlap(&self, other: &Self) -> f64 {
        let width = self.2.min(other.2) - self.0.max(other.0);
        let height = self.3.min(other.3) - self.1.max(other.1);
        width.max(0.0) * height.max(0.0)
    }
}

/// About what a sans-serif font takes, on the wide side.
fn width_of(text: &str) -> f64 {
    0.58 * TEXT * text.chars().count() as f64
}

/// A logarithmic axis.
struct Axis {
    from: f64,
    to: f64,
    /// Pixels of both ends.
    pixels: (f64, f64),
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, pixels: (f64, f64)) -> Self {
        let (mut from, mut to) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|value| *value > 0.0 && value.is_finite()) {
            (from, to) = (from.min(value), to.max(value));
        }
        // Nothing to show is shown on some axis.
        if from > to {
            (from, to) = (1.0, 10.0);
        }
        Self {
            from: from / 2.5,
            to: to * 2.5,
            pixels,
        }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value / self.from).ln() / (self.to / self.from).ln();
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }

    /// 1, 2 and 5 times powers of ten.
    fn ticks(&self) -> Vec<(f64, bool)> {
        let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
        let of_decade = |decade: i32| [1.0, 2.0, 5.0].map(|n| (n * 10f64.powi(decade), n == 1.0));
        let ticks = decades.flat_map(of_decade);
        ticks
            .filter(|(value, _)| (self.from..=self.to).contains(value))
            .collect()
    }
}

struct Drawing {
    svg: String,
    x: Axis,
    y: Axis,
    /// Where there is something already.
    taken: Vec<Rect>,
}

struct Ceiling {
    text: String,
    /// Pixels.
    ends: [(f64, f64); 2],
    /// Is its name above the line?
    above: bool,
}

struct Dot {
    /// Pixels.
    at: (f64, f64),
    radius: f64,
    colour: &'static str,
    name: &'static str,
}

/// A class that has a place in the drawing: one that computes and moves something.
fn place(class: &Class) -> Option<(f64, f64)> {
    let counted = class.operations > 0 && class.bytes > 0;
    counted.then(|| (class.operations as f64 / class.bytes as f64, class.gops))
}

impl Drawing {
    fn new(roofline: &Roofline) -> Self {
        let classes = || roofline.phases.iter().flat_map(|phase| &phase.classes);
        let peaks = arithmetic(roofline);
        let fastest = roofline.peaks.read.iter().map(|read| read.gb_per_second);
        let fastest = fastest.fold(0.0, f64::max);
        // Where the ceilings meet is in the drawing.
        let knees = peaks.iter().map(|(_, gops)| gops / fastest.max(1e-9));
        let x = classes().filter_map(place).map(|(x, _)| x).chain(knees);
        let y = classes().filter_map(place).map(|(_, y)| y);
        let y = y.chain(peaks.iter().map(|(_, gops)| *gops));
        Self {
            svg: String::new(),
            x: Axis::new(x, (LEFT, WIDTH - RIGHT)),
            y: Axis::new(y, (HEIGHT - BOTTOM, TOP)),
            taken: Vec::new(),
        }
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.svg, "{element}");
    }

    fn text(&mut self, (x, y): (f64, f64), style: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.push(format_args!(
            r#"<text x="{x:.1}" y="{:.1}" {style}>{text}</text>"#,
            y + 0.35 * TEXT
        ));
    }

    fn frame(&mut self, roofline: &Roofline) {
        self.push(format_args!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" font-family="DejaVu Sans, Verdana, sans-serif" font-size="{TEXT}">
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>"##
        ));
        let name = roofline.model.rsplit('/').next().unwrap_or_default();
        let title = format!("{name}, {} threads", roofline.threads);
        self.text((LEFT, 22.0), r#"font-size="17" font-weight="bold""#, &title);
        let (x_ticks, y_ticks) = (self.x.ticks(), self.y.ticks());
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        for (value, whole) in x_ticks {
            let x = self.x.at(value);
            let colour = if whole { "#c8c8c8" } else { "#ececec" };
            self.push(format_args!(
                r#"<path d="M{x:.1} {TOP}V{bottom}" stroke="{colour}"/>"#
            ));
            let style = r#"text-anchor="middle""#;
            self.text((x, bottom + 16.0), style, &number(value));
        }
        for (value, whole) in y_ticks {
            let y = self.y.at(value);
            let colour = if whole { "#c8c8c8" } else { "#ececec" };
            self.push(format_args!(
                r#"<path d="M{LEFT} {y:.1}H{right}" stroke="{colour}"/>"#
            ));
            self.text((LEFT - 8.0, y), r#"text-anchor="end""#, &number(value));
        }
        self.push(format_args!(
            r##"<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#333333"/>"##
        ));
        let middle = (LEFT + right) / 2.0;
        self.text(
            (middle, bottom + 38.0),
            r#"text-anchor="middle""#,
            "operations per byte",
        );
        let y = (TOP + bottom) / 2.0;
        let turned = format!(r#"text-anchor="middle" transform="rotate(-90 18 {y})""#);
        self.text((18.0, y), &turned, "10⁹ operations per second (Gop/s)");
        self.legend(roofline);
    }

    fn legend(&mut self, roofline: &Roofline) {
        let mut x = LEFT;
        for (phase, colour) in roofline.phases.iter().zip(COLOURS.iter().cycle()) {
            let rows = if phase.name == "prefill" {
                format!(" of {} tokens", phase.rows)
            } else {
                String::new()
            };
            let ms = 1e3 * phase.undivided_seconds / phase.steps.max(1) as f64;
            let text = format!("{}{rows}: {ms:.2} ms a step", phase.name);
            let x_dot = x + 6.0;
            self.push(format_args!(
                r#"<circle cx="{x_dot}" cy="48" r="6" fill="{colour}" fill-opacity="0.75"/>"#
            ));
            self.text((x + 18.0, 48.0), "", &text);
            x += 40.0 + width_of(&text);
        }
        self.text(
            (LEFT, 68.0),
            r##"fill="#555555""##,
            "Area of a dot: share of the time of its step.",
        );
        let mut unplaced = Vec::new();
        for class in roofline.phases.iter().flat_map(|phase| &phase.classes) {
            if place(class).is_none() && !unplaced.contains(&class.class) {
                unplaced.push(class.class);
            }
        }
        let list = unplaced.join(", ");
        let text = format!("Without arithmetic, and so not shown: {list}");
        self.text((LEFT, HEIGHT - 18.0), r##"fill="#555555""##, &text);
    }

    /// Lines, and what is to be written at them.
    fn ceilings(&mut self, roofline: &Roofline) -> Vec<Ceiling> {
        let mut arithmetic = arithmetic(roofline);
        arithmetic.sort_by(|a, b| b.1.total_cmp(&a.1));
        let top = arithmetic.first().map_or(self.y.to, |(_, gops)| *gops);
        let mut read: Vec<_> = roofline.peaks.read.iter().collect();
        read.sort_by(|a, b| b.gb_per_second.total_cmp(&a.gb_per_second));
        let fastest = read.first().map_or(1.0, |read| read.gb_per_second);
        let (count, mut ceilings) = (read.len(), Vec::new());
        for (n, read) in read.into_iter().enumerate() {
            let speed = read.gb_per_second;
            let from = self.x.from.max(self.y.from / speed);
            let to = self.x.to.min(top / speed);
            let ends = [from, to].map(|x| (self.x.at(x), self.y.at(x * speed)));
            ceilings.push(Ceiling {
                text: format!("{} {speed:.0} GB/s", bytes(read.bytes)),
                ends,
                // Slopes lie close to each other: the last is named on its free side.
                above: n + 1 < count,
            });
        }
        for (name, gops) in arithmetic {
            let from = (gops / fastest).clamp(self.x.from, self.x.to);
            let y = self.y.at(gops);
            ceilings.push(Ceiling {
                text: format!("{name} {} Gop/s", number(gops.round())),
                ends: [(self.x.at(from), y), (WIDTH - RIGHT, y)],
                above: true,
            });
        }
        for Ceiling { ends, .. } in &ceilings {
            let [(x1, y1), (x2, y2)] = *ends;
            self.push(format_args!(
                r##"<path d="M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}" stroke="#333333" stroke-width="1.5"/>"##
            ));
            if y1 == y2 {
                self.taken.push(Rect(x1, y1 - 1.0, x2, y2 + 1.0));
            }
        }
        ceilings
    }

    fn name_ceiling(&mut self, ceiling: &Ceiling) {
        let Ceiling { text, ends, above } = ceiling;
        let [(x1, y1), (x2, y2)] = *ends;
        if y1 == y2 {
            let spots = (0..8).flat_map(|n| {
                let x = x2 - 6.0 - width_of(text) - 40.0 * f64::from(n);
                [(x, y1 - 11.0), (x, y1 + 11.0)]
            });
            let spots = spots.map(|(x, y)| Rect::of_text(text, x, y));
            let rect = self.free(spots.collect());
            return self.label(rect, "#333333", text);
        }
        let (length, angle) = ((x2 - x1).hypot(y2 - y1), (y2 - y1).atan2(x2 - x1));
        let (sin, cos) = angle.sin_cos();
        let side = if *above { 11.0 } else { -11.0 };
        let (x, y) = (x1 + side * sin, y1 - side * cos);
        // The first place along the line where nothing else is.
        let along = |n: u32| {
            let share = 0.04 + 0.1 * f64::from(n);
            let distance = share * (length - width_of(text)).max(0.0);
            let squares = (0..=(width_of(text) / TEXT) as usize).map(|n| {
                let d = distance + TEXT * n as f64;
                Rect::around((x + d * cos, y + d * sin), 0.6 * TEXT)
            });
            ((x + distance * cos, y + distance * sin), squares.collect())
        };
        let clash = |squares: &Vec<Rect>| squares.iter().map(|s| self.clash(s)).sum::<f64>();
        let places: Vec<((f64, f64), Vec<Rect>)> = (0..9).map(along).collect();
        let best = places
            .into_iter()
            .min_by(|a, b| clash(&a.1).total_cmp(&clash(&b.1)));
        if let Some(((x, y), squares)) = best {
            let degrees = angle.to_degrees();
            self.push(format_args!(
                r##"<text x="0" y="{:.1}" transform="translate({x:.1} {y:.1}) rotate({degrees:.1})" fill="#333333" {HALO}>{text}</text>"##,
                0.35 * TEXT
            ));
            self.taken.extend(squares);
        }
    }

    /// Dots, the small ones on the large ones.
    fn dots(&mut self, roofline: &Roofline) -> Vec<Dot> {
        let mut dots = Vec::new();
        for (phase, colour) in roofline.phases.iter().zip(COLOURS.iter().cycle()) {
            for class in &phase.classes {
                if let Some((x, y)) = place(class) {
                    dots.push(Dot {
                        at: (self.x.at(x), self.y.at(y)),
                        radius: 3.0 + 14.0 * class.share.sqrt(),
                        colour,
                        name: class.class,
                    });
                }
            }
        }
        dots.sort_by(|a, b| b.radius.total_cmp(&a.radius));
        for Dot {
            at: (x, y),
            radius,
            colour,
            ..
        } in &dots
        {
            self.push(format_args!(
                r##"<circle cx="{x:.1}" cy="{y:.1}" r="{radius:.1}" fill="{colour}" fill-opacity="0.75" stroke="#ffffff"/>"##
            ));
            self.taken.push(Rect::around((*x, *y), *radius));
        }
        dots
    }

    fn name_dot(&mut self, dot: &Dot) {
        let Dot {
            at: (x, y),
            radius,
            colour,
            name,
        } = *dot;
        let rings = [4.0, 10.0, 18.0, 28.0, 40.0, 56.0, 76.0, 100.0];
        let around = |gap: f64| {
            (0..16).map(move |n| {
                let (sin, cos) = (std::f64::consts::TAU * f64::from(n) / 16.0).sin_cos();
                let distance = radius + gap;
                let (x, y) = (x + distance * cos, y + (distance + 0.6 * TEXT) * sin);
                // To the right of the dot the text begins there, to the left it ends there.
                let x = x - width_of(name) * (1.0 - cos) / 2.0;
                Rect::of_text(name, x, y)
            })
        };
        let rect = self.free(rings.into_iter().flat_map(around).collect());
        let (to_x, to_y) = (
            x.clamp(rect.0, rect.2),
            y.clamp(rect.1 + 0.2 * TEXT, rect.3 - 0.2 * TEXT),
        );
        if (to_x - x).hypot(to_y - y) > radius + 12.0 {
            self.push(format_args!(
                r#"<path d="M{x:.1} {y:.1}L{to_x:.1} {to_y:.1}" stroke="{colour}" stroke-width="0.8"/>"#
            ));
        }
        self.label(rect, colour, name);
    }

    /// How much of a rectangle is taken or beyond the axes.
    fn clash(&self, rect: &Rect) -> f64 {
        let inside = Rect(
            LEFT + 2.0,
            TOP + 2.0,
            WIDTH - RIGHT - 2.0,
            HEIGHT - BOTTOM - 2.0,
        );
        let area = (rect.2 - rect.0) * (rect.3 - rect.1);
        let taken: f64 = self.taken.iter().map(|taken| taken.overlap(rect)).sum();
        taken + area - rect.overlap(&inside)
    }

    /// The first of some places that is free, or else the one that is the most so.
    fn free(&mut self, places: Vec<Rect>) -> Rect {
        let clash = |place: &Rect| self.clash(place);
        let best = places
            .into_iter()
            .min_by(|a, b| clash(a).total_cmp(&clash(b)));
        let best = best.unwrap_or(Rect(LEFT, TOP, LEFT, TOP));
        self.taken.push(best);
        best
    }

    fn label(&mut self, rect: Rect, colour: &str, text: &str) {
        let style = format!(r#"fill="{colour}" {HALO}"#);
        self.text((rect.0, (rect.1 + rect.3) / 2.0), &style, text);
    }
}

/// White around letters, so that lines do not cross them.
const HALO: &str =
    r##"stroke="#ffffff" stroke-width="3" stroke-linejoin="round" paint-order="stroke""##;

/// The ceilings of arithmetic that some class is under.
fn arithmetic(roofline: &Roofline) -> Vec<(String, f64)> {
    let classes = || roofline.phases.iter().flat_map(|phase| &phase.classes);
    let peaks = roofline.peaks.compute.iter().map(|peak| {
        let unit = format!("{} {}", peak.tier, peak.operation);
        (unit, peak.gops)
    });
    peaks
        .filter(|(unit, _)| classes().any(|class| class.unit == *unit))
        .collect()
}

fn number(value: f64) -> String {
    if value >= 1.0 {
        let digits = format!("{value:.0}");
        let grouped = digits.as_bytes().rchunks(3).rev();
        let groups: Vec<_> = grouped.map(String::from_utf8_lossy).collect();
        groups.join(",")
    } else {
        format!("{}", (value * 1e6).round() / 1e6)
    }
}
