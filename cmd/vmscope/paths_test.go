package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestPathsFile changes a file of watchpoints, for the better and the worse.
func TestPathsFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "paths")
	var watched string
	p := &pathsFile{name: name, set: func(paths []string) error { watched = strings.Join(paths, " "); return nil }}
	write := func(s string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	look := func(wantN int, wantErr, wantWatched string) {
		t.Helper()
		n, err := p.look()
		if n != wantN || (err == nil) != (wantErr == "") || err != nil && !strings.Contains(err.Error(), wantErr) || watched != wantWatched {
			t.Errorf("%d, %v, watched %q", n, err, watched)
		}
	}
	write("# a comment\n/a\n\n  \n/with space \r\n/last")
	look(-1, "", "") // it may not be at its end
	look(3, "", "/a /with space  /last")
	look(-1, "", "/a /with space  /last")
	write("/b\n")
	look(-1, "", "/a /with space  /last")
	write("/b\n/c\n")
	look(-1, "", "/a /with space  /last")
	look(2, "", "/b /c")
	write("/d\netc\n")
	look(-1, "", "/b /c")
	look(-1, `line 2: watchpoint "etc"`, "/b /c")
	look(-1, "", "/b /c") // told once
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	look(-1, "no such file", "/b /c")
	look(-1, "", "/b /c")
	write("/b\n/c\n") // as before
	look(-1, "", "/b /c")
	look(2, "", "/b /c")
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	look(-1, "no such file", "/b /c") // once more
	write("")
	look(-1, "", "/b /c")
	look(0, "", "")
	write(strings.Repeat("/x\n", maxPathsFile/3+1))
	look(-1, "more than", "")
	if err := errors.Join(os.Remove(name), syscall.Mkfifo(name, 0o600)); err != nil {
		t.Fatal(err)
	}
	look(-1, "not a regular file", "")
	if _, err := readPaths(name + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// TestReplayPathsFrom watches what a file names and the command line does.
func TestReplayPathsFrom(t *testing.T) {
	_, log, base := recorded(t, "ext4")
	name := filepath.Join(t.TempDir(), "paths")
	told := func(file string, paths ...string) string {
		t.Helper()
		if err := os.WriteFile(name, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		out, stderr, status := run(t, append([]string{"replay", log, "--base", base, "--op", "MKFILE", "--paths-from", name}, paths...)...)
		if status != 0 {
			t.Fatalf("status %d, %q", status, stderr)
		}
		return out
	}
	all, none, some := told("/"), told(""), told("/d*\n")
	if none != "" || some == "" || len(some) >= len(all) {
		t.Errorf("nothing: %q, a part: %d bytes, all: %d", none, len(some), len(all))
	}
	if got := told("/nowhere", "/d*"); got != some {
		t.Errorf("by the command line: %q, by the file: %q", got, some)
	}
}
