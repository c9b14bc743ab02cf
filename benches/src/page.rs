//! The report as one self-contained HTML page.

use crate::report::Report;

/// The page's text.
pub fn html(report: &Report) -> String {
    let text = report.table().replace('&', "&amp;").replace('<', "&lt;");
    format!("<!doctype html><meta charset=\"utf-8\"><title>ringspan bench</title><pre>{text}</pre>\n")
}
