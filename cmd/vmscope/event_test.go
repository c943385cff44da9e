package main

import (
	"testing"

	"vmscope/event"
)

// TestEventLines: what a guest calls its files does not make one event look like another.
func TestEventLines(t *testing.T) {
	for want, e := range map[string]event.Event{
		`MKFILE: /root/My file`:                       {Op: event.MkFile, Path: "/root/My file"},
		`MKFILE: "/f\x1b[2J\nRMFILE: /etc/passwd"`:    {Op: event.MkFile, Path: "/f\x1b[2J\nRMFILE: /etc/passwd"},
		`MKFILE: "/f sha256:ba7816bf8f01cfea"`:        {Op: event.MkFile, Path: "/f sha256:ba7816bf8f01cfea"},
		`RENAME: "/a -> /b" -> /c`:                    {Op: event.Rename, OldPath: "/a -> /b", Path: "/c"},
		`RENAME: /a -> "/b -> /c"`:                    {Op: event.Rename, OldPath: "/a", Path: "/b -> /c"},
		`RENAME: /a->b -> /c`:                         {Op: event.Rename, OldPath: "/a->b", Path: "/c"},
		`SYMLINK: /l -> "\"/x\""`:                     {Op: event.Symlink, Path: "/l", Target: `"/x"`},
		`SYMLINK: /l -> " /x"`:                        {Op: event.Symlink, Path: "/l", Target: ` /x`},
		`CHMOD: "/f (0600)" (4755)`:                   {Op: event.Chmod, Path: "/f (0600)", Attr: &event.Attr{Mode: 0o4755}},
		`WRITE: "/f (9 bytes at 0) " (5 bytes at 65)`: {Op: event.Write, Path: "/f (9 bytes at 0) ", Offset: 65, Length: 5},
	} {
		if got := eventLine(&e); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	}
}
