//! Changes as the overlay records them; the errors are those that the real machine would give.

use std::path::Path;

use super::{Entry, Holds, Overlay, not_found};
use crate::{
    host::{
        Attrs, Command, Effect, FileKind, Fill, Ran, Read, Write,
        atomic::{self, explain},
    },
    modules::Failure,
};

impl Write for Overlay<'_> {
    fn as_read(&self) -> &dyn Read {
        self
    }

    fn write(&mut self, path: &Path, content: &[u8], attrs: &Attrs, validate: Option<&str>) -> Result<(), Failure> {
        if let Some(validate) = validate {
            atomic::validate_words(validate, path)?;
        }
        let (at, found) = self.target_of_file(path)?;
        let kept = found.filter(|m| m.kind == FileKind::File);
        let meta = self.new_meta(FileKind::File, content.len() as u64, attrs, kept.as_ref())?;
        self.nodes.insert(at, Entry::There(meta, Holds::Content(content.into())));
        Ok(())
    }

    fn receive(&mut self, path: &Path, attrs: &Attrs, _fill: Fill<'_>) -> Result<bool, Failure> {
        let (at, found) = self.target_of_file(path)?;
        let kept = found.filter(|m| m.kind == FileKind::File);
        let meta = self.new_meta(FileKind::File, 0, attrs, kept.as_ref())?;
        self.nodes.insert(at, Entry::There(meta, Holds::Unknown));
        Ok(false)
    }

    fn mkdir(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        let (at, found) = self.target(path)?;
        if found.is_some() {
            return Err(Failure::new(format!("cannot make the folder {}: something is there", path.display())));
        }
        let meta = self.new_meta(FileKind::Directory, 0, attrs, None)?;
        self.nodes.insert(at, Entry::There(meta, Holds::Folder { fresh: true }));
        Ok(())
    }

    fn set_attrs(&mut self, path: &Path, attrs: &Attrs) -> Result<(), Failure> {
        let at = self.resolve(path, false).map_err(|e| explain("look at", path, &e))?;
        let found = self.lookup(&at).and_then(|f| f.ok_or_else(not_found));
        let (mut meta, holds) = found.map_err(|e| explain("look at", path, &e))?;
        self.apply_attrs(&mut meta, attrs)?;
        self.nodes.insert(at, Entry::There(meta, holds));
        Ok(())
    }

    fn symlink(&mut self, target: &Path, path: &Path) -> Result<(), Failure> {
        let (at, _) = self.target_of_file(path)?;
        let meta = self.new_meta(FileKind::Symlink, target.as_os_str().len() as u64, &Attrs::default(), None)?;
        self.nodes.insert(at, Entry::There(meta, Holds::Link(target.to_path_buf())));
        Ok(())
    }

    fn hard_link(&mut self, target: &Path, path: &Path) -> Result<(), Failure> {
        let (at, _) = self.target_of_file(path)?;
        let source = self.resolve(target, false).and_then(|s| self.lookup(&s)?.ok_or_else(not_found));
        let (meta, holds) = source.map_err(|e| explain("link", path, &e))?;
        if meta.kind == FileKind::Directory {
            return Err(Failure::new(format!("cannot link {}: {} is a folder", path.display(), target.display())));
        }
        self.nodes.insert(at, Entry::There(meta, holds));
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Failure> {
        let verb = format!("rename {} to", from.display());
        let (at, found) = self.target(to)?;
        let source = self.resolve(from, false).map_err(|e| explain(&verb, to, &e))?;
        let mut moved = Vec::new();
        self.subtree(&source, &mut moved).map_err(|e| explain(&verb, to, &e))?;
        let Some((_, first, _)) = moved.first() else { return Err(explain(&verb, to, &not_found())) };
        match (first.kind == FileKind::Directory, found.map(|m| m.kind == FileKind::Directory)) {
            (false, Some(true)) => return Err(atomic::is_folder(to)),
            (true, Some(false)) => {
                return Err(Failure::new(format!("cannot {verb} {}: a file is there", to.display())));
            }
            _ => {}
        }
        self.forget(&source);
        self.nodes.insert(source.clone(), Entry::Gone);
        self.forget(&at);
        for (path, meta, holds) in moved {
            let new = path.strip_prefix(&source).map_or_else(
                |_| at.clone(),
                |rest| if rest.as_os_str().is_empty() { at.clone() } else { at.join(rest) },
            );
            let holds = if matches!(holds, Holds::Folder { .. }) { Holds::Folder { fresh: true } } else { holds };
            self.nodes.insert(new, Entry::There(meta, holds));
        }
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> Result<(), Failure> {
        atomic::place(path)?;
        let at = self.resolve(path, false).map_err(|e| explain("look at", path, &e))?;
        if self.lookup(&at).map_err(|e| explain("look at", path, &e))?.is_some() {
            self.forget(&at);
            self.nodes.insert(at, Entry::Gone);
        }
        Ok(())
    }

    fn touch(&mut self, path: &Path) -> Result<(), Failure> {
        let at = self.resolve(path, false).map_err(|e| explain("look at", path, &e))?;
        let found = self.lookup(&at).and_then(|f| f.ok_or_else(not_found));
        let (mut meta, holds) = found.map_err(|e| explain("touch", path, &e))?;
        meta.modified = self.base.now();
        self.nodes.insert(at, Entry::There(meta, holds));
        Ok(())
    }

    fn run(&mut self, _command: &Command, effects: &[Effect]) -> Result<Ran, Failure> {
        if effects.is_empty() {
            self.uncertain = true;
            return Ok(Ran::Unknown);
        }
        for effect in effects {
            self.take(effect).map_err(|e| Failure::new(format!("cannot read the machine's users and groups: {e}")))?;
        }
        Ok(Ran::Planned)
    }
}
