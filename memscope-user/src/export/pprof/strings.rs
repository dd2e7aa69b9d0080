use std::collections::HashMap;

/// The string table: every string once, the empty one first.
#[derive(Debug)]
pub(super) struct Strings {
    table: Vec<String>,
    indices: HashMap<String, i64>,
}

impl Default for Strings {
    fn default() -> Self {
        Self { table: vec![String::new()], indices: HashMap::from([(String::new(), 0)]) }
    }
}

impl Strings {
    pub(super) fn index_of(&mut self, string: &str) -> i64 {
        if let Some(known) = self.indices.get(string) {
            return *known;
        }
        let index = self.table.len() as i64;
        self.table.push(string.to_owned());
        self.indices.insert(string.to_owned(), index);
        index
    }

    pub(super) fn into_table(self) -> Vec<String> {
        self.table
    }
}
