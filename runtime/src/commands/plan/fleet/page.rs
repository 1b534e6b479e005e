//! The fleet as a page: one file, with nothing to fetch, that sorts and filters in any browser.

use super::super::changes::first_reason;
use super::{COLUMNS, Row};
use std::fmt::Write;

/// Look and behaviour.
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// The page.
pub(super) fn of(rows: &[Row], engine: &str) -> String {
    let served = rows.iter().filter(|row| row.refused.is_none()).count();
    let mut models: Vec<&str> = rows.iter().map(|row| row.model.as_str()).collect();
    models.dedup();
    models.sort_unstable();
    models.dedup();
    let mut machines: Vec<&str> = rows.iter().map(|row| row.machine.as_str()).collect();
    machines.dedup();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Fleet plan</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<header>\n<h1>Fleet plan</h1>\n\
         <p>{} machines, {} models, kernels of {}: <strong>{served} of {}</strong> combinations can be served.</p>\n\
         <div class=\"controls\">\n<input id=\"filter\" type=\"search\" placeholder=\"Filter: h100, fp8, FLASH…\" \
         aria-label=\"Filter rows\">\n",
        machines.len(),
        models.len(),
        escaped(engine),
        rows.len()
    );
    page.push_str("<div id=\"models\" role=\"group\" aria-label=\"Models\">");
    for model in &models {
        let name = escaped(model);
        put(
            &mut page,
            format_args!("<button data-model=\"{name}\" aria-pressed=\"true\">{name}</button>"),
        );
    }
    page.push_str(
        "</div>\n<label><input id=\"served\" type=\"checkbox\"> only what can be served</label>\n<span id=\"count\" \
         role=\"status\"></span>\n</div>\n</header>\n<main>\n<table>\n<thead><tr>",
    );
    for (n, name) in COLUMNS.iter().take(COLUMNS.len() - 1).enumerate() {
        let kind = if n >= 8 { " class=\"number\"" } else { "" };
        put(
            &mut page,
            format_args!("<th{kind}><button data-column=\"{n}\">{name}</button></th>"),
        );
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        body_row(&mut page, row);
    }
    put(
        &mut page,
        format_args!(
            "</tbody>\n</table>\n</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
        ),
    );
    page
}

fn put(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text)
        .expect("a String takes all that is written to it");
}

fn body_row(page: &mut String, row: &Row) {
    let cells = row.cells();
    // What a column is sorted by, where that is not its text.
    let exact = [
        (8, u64::from(row.devices)),
        (9, row.weight_bytes),
        (10, row.kv_bytes),
        (11, row.context.into()),
        (12, row.sequences),
    ];
    let class = if row.refused.is_some() {
        "refused"
    } else {
        "served"
    };
    put(
        page,
        format_args!(
            "<tr class=\"{class}\" data-model=\"{}\">",
            escaped(&row.model)
        ),
    );
    let first = if row.refused.is_some() { 3 } else { 13 };
    for (n, cell) in cells.iter().enumerate().take(first) {
        let cell = escaped(cell);
        match exact.iter().find(|(column, _)| *column == n) {
            Some((_, value)) => {
                put(
                    page,
                    format_args!("<td class=\"number\" data-value=\"{value}\">{cell}</td>"),
                );
            }
            None => put(page, format_args!("<td>{cell}{}</td>", warnings(row, n))),
        }
    }
    if let Some(why) = &row.refused {
        let first = escaped(&first_reason(why));
        let rest: Vec<_> = why.lines().skip(1).map(escaped).collect();
        let rest = match rest.is_empty() {
            true => String::new(),
            false => format!(
                "<details><summary>each reason</summary><pre>{}</pre></details>",
                rest.join("\n")
            ),
        };
        put(page, format_args!("<td colspan=\"10\">{first}{rest}</td>"));
    }
    page.push_str("</tr>\n");
}

/// Behind the machine's name.
fn warnings(row: &Row, column: usize) -> String {
    match (column, row.warnings.as_slice()) {
        (0, [_, ..]) => {
            let all = row.warnings.iter().map(|warning| escaped(warning));
            format!(
                " <abbr title=\"{}\">⚠</abbr>",
                all.collect::<Vec<_>>().join(" · ")
            )
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn names_of_machines_cannot_write_the_page() {
        let hostile = "<script>alert('x')</script>\" onclick=\"&";
        let safe = escaped(hostile);
        assert!(!safe.contains(['<', '>', '"', '\'']), "{safe}");
        assert!(safe.ends_with("onclick=&quot;&amp;"), "{safe}");
    }
}
