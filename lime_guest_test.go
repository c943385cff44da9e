package vmscope_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

// limeVariable is the environment variable that, set to 1, has TestLimeGuest
// run. See make test-long.
const limeVariable = "VMSCOPE_LIME"

// TestLimeGuest has LiME write the memory of a guest from within, in both formats
// that tell where it lay, and compares what is in the files with what the guest
// said.
func TestLimeGuest(t *testing.T) {
	if os.Getenv(limeVariable) != "1" {
		guestlab.Skip(t, "builds LiME against packages of the kernel's very release: "+limeVariable+"=1; see scripts/test-long")
	}
	const ram = 160 << 20
	cfg := guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: ram >> 20}
	cfg.Files = map[string]string{"lime.ko": guestlab.Lime(t, cfg.Kernel)}
	dir := t.TempDir()
	formats := []string{"lime", "padded"}
	for _, f := range formats {
		path := filepath.Join(dir, f)
		guestlab.MakeImage(t, path, "raw", ram+1<<20)
		cfg.Disks = append(cfg.Disks, guestlab.Disk{ID: f, Path: path})
	}
	g := guestlab.Boot(t, cfg)
	if _, err := g.Spawn(t.Context(), guestlab.Spawn{Comm: []byte("sleeper"), Args: [][]byte{[]byte("sleeper"), []byte("a b"), {}}, UID: 1000, GID: 65534}); err != nil {
		t.Fatal(err)
	}
	// Nearly all memory is filled with what LiME wrote, if nobody frees it, and
	// the kernel moves pages to find some. The loop starts no process.
	if _, err := g.Run(t.Context(), "mkfifo /tmp/never\nwhile :; do read -t 0.1 never <>/tmp/never; echo 1 >/proc/sys/vm/drop_caches; done >/dev/null 2>&1 &"); err != nil {
		t.Fatal(err)
	}
	wrote := make(map[string]limeRun)
	for _, f := range formats {
		wrote[f] = writeLime(t, g, f)
	}
	g.Close() // the disks become files, to be cut behind what LiME wrote
	end, ranges := limeEnds(t, filepath.Join(dir, "lime"))
	if ranges < 2 || end.ram > ram || end.ram < ram-1<<20 {
		t.Errorf("%d ranges up to %#x of %#x bytes of RAM", ranges, end.ram, ram)
	}
	size := map[string]int64{"lime": end.file, "padded": end.ram}
	for _, f := range formats {
		t.Run(f, func(t *testing.T) {
			path := filepath.Join(dir, f)
			if err := os.Truncate(path, size[f]); err != nil {
				t.Fatal(err)
			}
			wrote[f].check(t, look(t, path))
		})
	}
}

// limeRun is what a guest said of itself while LiME wrote.
type limeRun struct {
	truth
	shell, insmod int    // processes that end with it
	module        string // the line of /proc/modules
}

// writeLime has LiME write to the disk of the format's name.
func writeLime(t *testing.T, g *guestlab.Guest, format string) (r limeRun) {
	t.Helper()
	device, err := g.DiskDevice(t.Context(), format)
	if err != nil {
		t.Fatal(err)
	}
	// What LiME writes is not of one moment. Where the kernel started or ended a
	// worker meanwhile, or moved pages, the file may contradict itself.
	moved := func() string {
		out, err := g.Run(t.Context(), "grep pgmigrate_success /proc/vmstat")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for range 10 {
		before := moved()
		r.truth = truthOf(t, g, func() {
			out, err := g.Run(t.Context(), "insmod /lime.ko path="+device+" format="+format+" & echo $$ $!\nwait $! && grep ^lime /proc/modules && rmmod lime")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := fmt.Sscanf(out, "%d %d", &r.shell, &r.insmod); err != nil {
				t.Fatalf("%q: %v", out, err)
			}
			_, r.module, _ = strings.Cut(out, "\n")
		})
		if len(r.procs) == len(r.pids) && moved() == before {
			return r
		}
		t.Logf("%s: %d of %d processes stood still, %q before, %q after: once more", format, len(r.procs), len(r.pids), before, moved())
	}
	t.Fatal("the guest changed each time while LiME wrote")
	return r
}

// check compares what the file shows.
func (r limeRun) check(t *testing.T, s seen) {
	t.Helper()
	for i, pid := range []int{r.shell, r.insmod} {
		r.pids[pid] = true
		comm, found := []string{"sh", "insmod"}[i], false
		for _, p := range s.procs {
			found = found || p.PID == pid && string(p.Comm) == comm
		}
		if !found {
			t.Errorf("no process %d %q, which had LiME write", pid, comm)
		}
	}
	if len(s.modules) == 0 {
		t.Fatal("no modules")
	}
	// LiME writes while it is being loaded.
	m := s.modules[0]
	if words := strings.Fields(r.module); len(words) < 6 || string(m.Name) != words[0] || fmt.Sprintf("%#x", uint64(m.Base)) != words[5] || m.State != "Loading" {
		t.Errorf("first module %s %s at %#x; the guest says %q", m.Name, m.State, uint64(m.Base), r.module)
	}
	s.modules = s.modules[1:]
	for i := range r.modules {
		if r.modules[i].Name == "virtio_blk" {
			r.modules[i].Refs++ // LiME has the disk open
		}
	}
	r.truth.check(t, s)
}

// limeEnd is where the last range ends.
type limeEnd struct{ file, ram int64 }

// limeEnds counts the ranges of a file that begins with a LiME dump.
func limeEnds(t *testing.T, path string) (end limeEnd, ranges int) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// lime_mem_range_header of LiME's lime.h.
	var h struct {
		Magic, Version uint32
		First, Last    uint64
		_              [8]byte
	}
	for ; ; ranges++ {
		var b [32]byte
		if _, err := f.ReadAt(b[:], end.file); err != nil {
			t.Fatal(err)
		}
		if _, err := binary.Decode(b[:], binary.LittleEndian, &h); err != nil {
			t.Fatal(err)
		}
		if h.Magic != 0x4c694d45 || ranges > 100 {
			return end, ranges
		}
		end.file += int64(len(b)) + int64(h.Last-h.First) + 1
		end.ram = int64(h.Last) + 1
	}
}
