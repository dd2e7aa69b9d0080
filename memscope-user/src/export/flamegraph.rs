//! Call chains by weight as a picture: SVG that needs nothing from outside.

use std::io::{Cursor, Write};

use inferno::flamegraph::{Options, Palette, color::BasicPalette, from_lines};

use super::{ExportError, Weight, collapsed::chains};
use crate::{
    reports::{Analysis, Trust, check, cut, started_at},
    text,
};

/// Characters that fit under the title of a picture 1200 wide.
const SUBTITLE_WIDTH: usize = 160;

/// Writes the picture; its title says what is shown and how much there is of it,
/// and the line below how far to trust it.
///
/// # Errors
///
/// See [`ExportError`].
pub fn export_flamegraph(
    analysis: &Analysis,
    weight: Weight,
    out: &mut dyn Write,
) -> Result<(), ExportError> {
    check(analysis)?;
    weight.check(analysis)?;
    let chains = chains(analysis, weight);
    let all = chains.values().fold(0_u64, |sum, weight| sum.saturating_add(*weight));
    let amount = match weight.unit() {
        "bytes" => text::bytes(all),
        unit => format!("{} {unit}", text::count(all)),
    };
    let title = format!("memscope: {}, {amount}", weight.description());
    let trust = Trust::of(analysis).sentence;
    if chains.is_empty() {
        return write_empty(&title, &trust, out).map_err(ExportError::Write);
    }
    let mut options = Options::default();
    options.title = title;
    options.subtitle = Some(cut(&trust, SUBTITLE_WIDTH));
    let when = started_at(&analysis.capture);
    options.notes = format!("{when}, {}. {trust}", text::duration_ns(analysis.duration_ns()));
    options.count_name = weight.unit().to_owned();
    options.colors = Palette::Basic(BasicPalette::Mem);
    // The same recording gives the same picture, byte for byte.
    options.deterministic = true;
    // inferno sums without care; only a forged recording comes near its limit.
    let exact: u128 = chains.values().map(|weight| u128::from(*weight)).sum();
    let shift = exact.checked_ilog2().unwrap_or(0).saturating_sub(61);
    let lines: Vec<_> =
        chains.iter().map(|(chain, weight)| format!("{chain} {}", weight >> shift)).collect();
    let mut picture = Cursor::new(Vec::new());
    from_lines(&mut options, lines.iter().map(String::as_str), &mut picture)
        .map_err(ExportError::Write)?;
    out.write_all(picture.get_ref()).map_err(ExportError::Write)?;
    out.flush().map_err(ExportError::Write)
}

/// inferno draws an error where there is nothing to draw; nothing is no error. It escapes all
/// that it is given, as is done here.
fn write_empty(title: &str, trust: &str, out: &mut dyn Write) -> std::io::Result<()> {
    let (title, trust) = (escaped(title), escaped(trust));
    writeln!(
        out,
        "<?xml version=\"1.0\" standalone=\"no\"?>\n\
         <svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1200\" height=\"90\" viewBox=\"0 0 1200 90\" \
         font-family=\"monospace\" font-size=\"12\">\n\
         <text x=\"600\" y=\"24\" font-size=\"17\" text-anchor=\"middle\">{title}</text>\n\
         <text x=\"10\" y=\"70\">{trust}</text>\n</svg>"
    )?;
    out.flush()
}

/// Text as it stands between tags: a share can be `<0.01 %`.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
