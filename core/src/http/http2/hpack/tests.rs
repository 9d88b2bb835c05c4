use super::*;

mod errors;
mod properties;
mod tables;
mod vectors;

/// `name: value` of each field, and ` !` behind those that may never be indexed.
fn fields(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<String>, Error> {
    let mut lines = Vec::new();
    decoder.decode(block, &mut Vec::new(), usize::MAX, |name, value, never_indexed| {
        let mark = if never_indexed { " !" } else { "" };
        lines.push(format!("{}: {}{mark}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
    })?;
    Ok(lines)
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}
