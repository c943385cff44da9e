package linux_test

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ulikunitz/xz"

	"vmscope/internal/guestlab"
	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/ksym"
	"vmscope/mem"
)

var (
	update   = flag.Bool("update", false, "record testdata/replay anew, from real guests")
	reworded = flag.Bool("answers", false, "write the answers of testdata/replay anew, from the pages recorded before")
)

// recorded are the kernels of which testdata/replay holds the pages that were
// touched to find them and to list all that there is: the oldest and the newest,
// which differ in most layouts. Types and symbols make up nearly all of it.
var recorded = []string{"bullseye-cloud", "sid-cloud"}

// TestReplay finds recorded kernels and lists what was in them, without QEMU.
func TestReplay(t *testing.T) {
	for _, name := range recorded {
		t.Run(name, func(t *testing.T) {
			base := filepath.Join("testdata", "replay", name)
			if *update {
				record(t, name, base)
			}
			m := loadPages(t, base+".pages.xz")
			k, err := linux.Find(t.Context(), m, linux.Hints{})
			if err != nil {
				t.Fatal(err)
			}
			got := answers(t, k.View(m))
			if *reworded {
				if err := os.WriteFile(base+".json", []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(base + ".json")
			if err != nil {
				t.Fatal(err)
			}
			a, b := strings.Split(got, "\n"), strings.Split(string(want), "\n")
			for i := range max(len(a), len(b)) {
				switch {
				case i >= len(a):
					t.Fatalf("line %d is missing: %s", i+1, b[i])
				case i >= len(b):
					t.Fatalf("line %d is too much: %s", i+1, a[i])
				case a[i] != b[i]:
					t.Fatalf("line %d:\n got %s\nwant %s", i+1, a[i], b[i])
				}
			}
		})
	}
}

// answers are all lists of a kernel, one JSON object a line under a title.
func answers(t *testing.T, v *linux.View) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "kernel %s, %s, %s paging, %d symbols, %d types\n", v.Release, v.Arch, v.Mode, v.Symbols.Len(), v.Types.Len())
	fmt.Fprintf(&b, "_stext %#x at %#x, slide %#x, root %#x\n", uint64(v.Text), uint64(v.Kernel.Phys), v.Slide, uint64(v.Root))
	err := mem.Guard(func() error {
		init, err := v.TaskByPID(1)
		if err != nil {
			return err
		}
		holder, err := v.TaskByPID(holderPID(t, v))
		if err != nil {
			return err
		}
		list(t, &b, "processes", v.Processes)
		list(t, &b, "threads", v.Threads)
		list(t, &b, "modules", v.Modules)
		list(t, &b, "mounts", func() ([]kernel.Mount, error) { return v.Mounts(init) })
		list(t, &b, "mounts of the holder", func() ([]kernel.Mount, error) { return v.Mounts(holder) })
		list(t, &b, "files", v.AllFiles)
		list(t, &b, "areas of the holder", func() ([]kernel.Area, error) { return v.Areas(holder) })
		list(t, &b, "environment of the holder", func() ([]kernel.Text, error) { return v.Environ(holder) })
		list(t, &b, "sockets", v.Sockets)
		list(t, &b, "log", v.Log)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// list writes a list, as the methods of View return it.
func list[T any](t *testing.T, b *strings.Builder, title string, f func() ([]T, error)) {
	t.Helper()
	all, err := f()
	if err != nil {
		t.Errorf("%s: %v", title, err)
	}
	fmt.Fprintf(b, "\n%s: %d\n", title, len(all))
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	for _, x := range all {
		if err := e.Encode(x); err != nil {
			t.Error(err)
		}
	}
}

// holderPID is the process that holds all kinds of things.
func holderPID(t *testing.T, v *linux.View) int {
	t.Helper()
	all, err := v.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if len(p.CGroup) > 20 {
			return p.PID
		}
	}
	t.Fatal("no process in a group of its own")
	return 0
}

// loadPages loads a recording. It is kept as xz, a third smaller than what
// mem.Recorder writes.
func loadPages(t *testing.T, path string) *mem.Replay {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	magic := make([]byte, len(recordingMagic))
	if _, err := io.ReadFull(f, magic); err != nil {
		t.Fatal(err)
	}
	x, err := xz.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	b.Write(magic)
	z, _ := gzip.NewWriterLevel(&b, gzip.HuffmanOnly)
	if _, err := io.Copy(z, x); err != nil {
		t.Fatal(err)
	}
	z.Close()
	m, err := mem.Load(&b)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// recordingMagic is what a recording begins with; the rest is compressed.
const recordingMagic = "vmscope pages 1\n"

// record boots a kernel, makes some state in it and records the pages that all
// the lists touch, with the answers.
func record(t *testing.T, name, base string) {
	t.Helper()
	g := guestlab.Boot(t, guestlab.Config{Kernel: name, CPUs: 2, Name: "replay"})
	id := strings.Repeat("0123456789abcdef", 4)
	for _, s := range []guestlab.Spawn{
		{Comm: []byte("\xff\x1b[31m"), Args: [][]byte{{0xff, '\n'}, []byte("a b"), {}}, UID: 1000, GID: 65534},
		{Comm: []byte("holder"), Cgroup: "system.slice/docker-" + id + ".scope", NewNS: []string{"mnt", "uts"}, Hostname: "inner", Hold: &guestlab.Hold{
			Threads: [][]byte{[]byte("worker one"), {}}, Files: []string{"/tmp/held"}, Deleted: []string{"/tmp/gone"}, Dirs: []string{"/etc"}, Maps: []string{"/tmp/mapped"},
			Kinds: []string{"pipe", "eventfd", "epoll", "memfd", "timerfd", "signalfd", "inotify", "socketpair"}, Mounts: []string{"/mnt"},
			Listen: []string{"tcp4:127.0.0.1:8080", "tcp6:[::1]:8081", "unix:@abstract", "unix:/tmp/sock"}, Connect: []string{"tcp4:127.0.0.1:8080", "unix:/tmp/sock"}, Bind: []string{"udp4:127.0.0.1:53", "udp6:[::1]:53"},
		}},
	} {
		if _, err := g.Spawn(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	m := openRAM(t, g.RAMFile())
	extents := mustExtents(t, m)
	infos, err := ksym.FindVMCoreInfo(t.Context(), m, extents)
	if err != nil || len(infos) != 1 {
		t.Fatalf("%d VMCOREINFO texts, %v", len(infos), err)
	}
	f := &few{PhysReader: m}
	for _, pa := range infos[0].Places {
		f.ranges = append(f.ranges, mem.Range{Start: pa &^ (mem.PageSize - 1), Size: mem.PageSize})
	}
	// Kernels before v6.0 do not say where their symbol table is: it is searched
	// for, from the page with the tokens on.
	if _, ok := infos[0].Kallsyms(); !ok {
		tables, err := ksym.Find(t.Context(), m, extents)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range tables {
			f.ranges = append(f.ranges, mem.Range{Start: x.TokenTable &^ (mem.PageSize - 1), Size: mem.PageSize})
		}
	}
	r := mem.NewRecorder(f)
	k, err := linux.Find(t.Context(), r, linux.Hints{})
	if err != nil {
		t.Fatal(err)
	}
	text := answers(t, k.View(r))
	if err := os.WriteFile(base+".json", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := r.Save(&b); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b.Bytes()[len(recordingMagic):]))
	if err != nil {
		t.Fatal(err)
	}
	pages := exec.Command("xz", "-9e")
	pages.Stdin = z
	packed, err := pages.Output()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(base+".pages.xz", append([]byte(recordingMagic), packed...), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pages, %d KiB", r.Pages(), len(packed)>>10)
	// The guest itself must agree before its words are kept.
	s := &state{g: g, m: m, k: k}
	t.Run("modules", s.testModules)
	t.Run("log", s.testLog)
	t.Run("sockets", s.testSockets)
	compareProcesses(t, g, k.View(m), nil)
}

// few is a memory whose lists of RAM and of data name few pages, so that a
// search does not touch, and record, all of it. All of it can be read.
type few struct {
	mem.PhysReader
	ranges []mem.Range
}

func (f *few) Ranges() []mem.Range { return f.ranges }

func (f *few) Extents() ([]mem.Range, error) { return f.ranges, nil }
