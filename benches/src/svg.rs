//! What our pictures have in common: one look, no library.

use std::fmt::{Arguments, Write};

/// Size and texts of a picture.
pub(crate) struct Head<'a> {
    /// In pixels.
    pub(crate) width: f64,
    /// In pixels.
    pub(crate) height: f64,
    /// For those who cannot see it.
    pub(crate) title: &'a str,
    /// Above the picture.
    pub(crate) heading: &'a str,
    /// Where the heading begins.
    pub(crate) left: f64,
}

/// A picture up to its heading.
pub(crate) fn begin(head: &Head<'_>) -> String {
    let Head { width, height, left, .. } = head;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         role=\"img\">\n\
         <title>{}</title>\n\
         <style>\n\
         text{{font:13px system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#1f2328}}\n\
         .title{{font-size:16px;font-weight:600}}.small{{font-size:11px;fill:#57606a}}\n\
         .grid{{stroke:#d0d7de;stroke-width:1}}.axis{{stroke:#57606a;stroke-width:1}}\n\
         .curve{{fill:none;stroke-width:2.2;stroke-linejoin:round}}\n\
         </style>\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"#ffffff\"/>\n\
         <text class=\"title\" x=\"{left}\" y=\"26\">{}</text>\n",
        escape(head.title),
        escape(head.heading)
    )
}

/// The last line of text, and the end.
pub(crate) fn end(out: &mut String, head: &Head<'_>, caption: &str) {
    let (left, y) = (head.left, head.height - 16.0);
    put(out, format_args!("<text class=\"small\" x=\"{left}\" y=\"{y}\">{}</text>\n", escape(caption)));
    out.push_str("</svg>\n");
}

/// Appends.
pub(crate) fn put(out: &mut String, text: Arguments<'_>) {
    out.write_fmt(text).expect("writing to a String cannot fail");
}

/// Text that may stand between tags.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
