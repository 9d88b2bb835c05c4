//! Path normalisation once more, slowly: from Istio's and RFC 3986's words, with strings, a stack and repetition.

use meshring_core::http::PathNormalization;

/// One character of a path: as it is, or as an escape.
fn characters(path: &str) -> Vec<(bool, u8)> {
    let bytes = path.as_bytes();
    let (mut list, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let escaped = bytes[at] == b'%';
        let byte = if escaped { u8::from_str_radix(&path[at + 1..at + 3], 16).expect("two digits") } else { bytes[at] };
        list.push((escaped, byte));
        at += if escaped { 3 } else { 1 };
    }
    list
}

fn decoded(path: &str, slashes: bool) -> String {
    let text = |(escaped, byte): (bool, u8)| match byte {
        b'/' | b'\\' if slashes && escaped => "/".to_owned(),
        _ if !escaped || byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    characters(path).into_iter().map(text).collect()
}

/// The normal form of a path that the codec accepts; `None` where it is refused.
pub fn normalized(path: &str, level: PathNormalization) -> Option<String> {
    if level == PathNormalization::None {
        return Some(path.to_owned());
    }
    let path = decoded(path, level == PathNormalization::DecodeAndMergeSlashes);
    let segments: Vec<&str> = path.strip_prefix('/').expect("a slash").split('/').collect();
    let (last, others) = segments.split_last().expect("a segment");
    let mut stack: Vec<&str> = Vec::new();
    for segment in &segments {
        if let Some(rest) = segment.strip_prefix("..").or(segment.strip_prefix('.'))
            && (rest.starts_with(';') || rest.starts_with("%3B"))
        {
            return None;
        }
        match *segment {
            "." => {}
            ".." => drop(stack.pop()?),
            name => stack.push(name),
        }
    }
    if others.iter().any(|segment| segment.starts_with(';')) {
        return None;
    }
    if matches!(*last, "." | "..") {
        stack.push("");
    }
    let mut path = format!("/{}", stack.join("/"));
    while level >= PathNormalization::MergeSlashes && path.contains("//") {
        path = path.replace("//", "/");
    }
    Some(path)
}

/// What rules are matched against.
pub fn without_parameters(path: &str) -> String {
    let names: Vec<&str> = path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    names.join("/")
}
