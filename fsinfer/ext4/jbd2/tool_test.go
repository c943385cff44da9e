package jbd2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmscope/internal/guestlab"
)

func run(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	c := exec.Command(name, args...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	if err != nil && !(name == "e2fsck" && c.ProcessState.ExitCode() == 1) { // 1: it repaired something
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// journalBlocks asks debugfs where an image's journal lies: the file system block of each journal block.
func journalBlocks(t *testing.T, image string) []int64 {
	t.Helper()
	const some = 256
	var blocks []int64
	for {
		var script strings.Builder
		for i := range some {
			fmt.Fprintf(&script, "bmap <8> %d\n", len(blocks)+i)
		}
		for line := range strings.Lines(run(t, script.String(), "debugfs", "-f", "-", image)) {
			b, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
			if err != nil {
				continue // the echo of a command
			}
			if b == 0 {
				return blocks
			}
			blocks = append(blocks, b)
		}
		if len(blocks)%some != 0 || len(blocks) == 0 {
			return blocks
		}
	}
}

// The journal is written by debugfs and replayed by e2fsck; Recover must leave the same blocks.
func TestRecoverLikeE2fsck(t *testing.T) {
	guestlab.Need(t, "mke2fs", "debugfs", "e2fsck")
	for _, tt := range []struct {
		size           int
		features, open string
	}{
		{1024, "^metadata_csum,^64bit", "jo"},
		{1024, "^metadata_csum,64bit", "jo"},
		{2048, "^metadata_csum,^64bit", "jo -c"}, // checksums of version 1
		{1024, "^metadata_csum,64bit", "jo -c"},
		{2048, "metadata_csum,^64bit", "jo -c -v 2"},
		{1024, "metadata_csum,64bit", "jo -c -v 2"},
		{1024, "metadata_csum,^64bit", "jo -c -v 3"},
		{4096, "metadata_csum,64bit", "jo -c -v 3"},
		{65536, "metadata_csum,64bit", "jo -c -v 3"},
	} {
		t.Run(fmt.Sprint(tt.size, " ", tt.features, " ", tt.open), func(t *testing.T) {
			dir := t.TempDir()
			image := filepath.Join(dir, "image")
			fsBlocks := 3000
			run(t, "", "mke2fs", "-q", "-F", "-t", "ext4", "-b", strconv.Itoa(tt.size), "-O", tt.features,
				"-J", fmt.Sprintf("size=%d", tt.size/1024), image, strconv.Itoa(fsBlocks*tt.size/1024)+"k")
			r := rand.New(rand.NewPCG(uint64(tt.size), uint64(len(tt.features))))
			// Blocks behind the metadata and the journal, which nothing else uses.
			free := func() string { return strconv.Itoa(2400 + r.IntN(60)) }
			script := tt.open + "\n"
			for i := range 25 {
				content := filepath.Join(dir, fmt.Sprint("content", i))
				n := 1 + r.IntN(12)
				p := make([]byte, n*tt.size)
				for k := range p {
					p[k] = byte(r.Uint32())
				}
				if r.IntN(2) == 0 {
					copy(p, []byte{0xC0, 0x3B, 0x39, 0x98})
				}
				if err := os.WriteFile(content, p, 0o600); err != nil {
					t.Fatal(err)
				}
				var blocks []string
				for _, b := range r.Perm(60)[:n] {
					blocks = append(blocks, strconv.Itoa(2400+b))
				}
				script += "jw -b " + strings.Join(blocks, ",")
				if i == 24 {
					script += " -c" // not committed
				}
				script += " " + content + "\n"
				// With checksums of version 1 debugfs sums up revoke blocks, too, which no recovery does.
				if v1 := tt.open == "jo -c"; !v1 && r.IntN(3) == 0 && i < 24 {
					script += fmt.Sprintf("jw -r %s,%s\n", free(), free())
				}
			}
			run(t, script+"jc\n", "debugfs", "-w", "-f", "-", image)
			want, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			at := journalBlocks(t, image)
			read := func(p []byte, index uint32) error {
				copy(p, want[at[index]*int64(tt.size):])
				return nil
			}
			p := make([]byte, tt.size)
			_ = read(p, 0)
			sb, err := ParseSuper(p)
			if err != nil {
				t.Fatal(err)
			}
			if err := sb.Check(uint32(tt.size), uint64(len(at))); err != nil {
				t.Fatal(err)
			}
			if want := map[string]uint8{"jo": 0, "jo -c": 1, "jo -c -v 2": 2, "jo -c -v 3": 3}[tt.open]; sb.Format().Csum != want {
				t.Fatalf("checksums of version %d, want %d", sb.Format().Csum, want)
			}
			home := map[uint64][]byte{}
			last, err := Recover(sb, read, func(tx *Tx) error {
				for _, l := range tx.Blocks {
					home[l.Block] = bytes.Clone(l.Data)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if last < 24 || len(home) < 40 {
				t.Errorf("last %d, %d blocks", last, len(home))
			}
			for b, d := range home {
				copy(want[b*uint64(tt.size):], d)
			}
			run(t, "", "e2fsck", "-fy", "-E", "journal_only", image)
			got, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			for b := range len(got) / tt.size {
				if b == 1024/tt.size || int64(b) == at[0] {
					continue // the superblocks of the file system and of the journal
				}
				if off := b * tt.size; !bytes.Equal(got[off:off+tt.size], want[off:off+tt.size]) {
					t.Errorf("block %d is not as e2fsck leaves it", b)
				}
			}
		})
	}
}
