package fsoracle_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmscope/fsinfer/ext4"
	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab"
)

// TestRecoveryAsE2fsckDoesIt takes the power away in the middle of recordings and looks at the disk that remains, with
// the journal applied in memory. e2fsck, on a copy, does it for good; the trees must be the same.
func TestRecoveryAsE2fsckDoesIt(t *testing.T) {
	e2fsck, err := exec.LookPath("e2fsck")
	if err != nil {
		e2fsck = "/usr/sbin/e2fsck"
	}
	if _, err := os.Stat(e2fsck); err != nil {
		guestlab.SkipOrFail(t, "e2fsck is not installed (package e2fsprogs)")
	}
	// Not with fast commits: e2fsck 1.47.0 replays them and then stumbles over its own superblock. recover-fast-commit has
	// what a kernel makes of them.
	seed := freshSeed(t)
	for _, name := range []string{"ext4", "ext4-1k", "small-journal", "data-journal", "ext3", "async-commit-v1", "csum-seed-orphan-file", "no-64bit", "large-dir"} {
		t.Run(name, func(t *testing.T) {
			r, err := fsoracle.Open(filepath.Join("../../fsinfer/ext4/testdata/streams", name+fsoracle.Extension))
			if err != nil {
				t.Fatal(err)
			}
			defer onceMore(t, seed, 1)
			for at := range entries(t, r.Points[0].Entries, r.Points[3].Entries, seed, 1) {
				image, err := r.Image(at)
				if err != nil {
					t.Fatal(err)
				}
				ours, err := look(disk{bytes.NewReader(image)})
				if err != nil {
					t.Fatalf("entry %d: %v", at, err)
				}
				path := filepath.Join(t.TempDir(), "image")
				if err := os.WriteFile(path, image, 0o644); err != nil {
					t.Fatal(err)
				}
				out, err := exec.Command(e2fsck, "-fy", path).CombinedOutput()
				var exit *exec.ExitError
				if err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 1) {
					t.Fatalf("e2fsck: %v: %s", err, out)
				}
				if image, err = os.ReadFile(path); err != nil {
					t.Fatal(err)
				}
				v, err := ext4.OpenHome(disk{bytes.NewReader(image)})
				if err != nil {
					t.Fatal(err)
				}
				truth, err := lookAt(v)
				if err != nil {
					t.Fatal(err)
				}
				replayer, err := fsoracle.New(ours)
				if err != nil {
					t.Fatalf("entry %d: %v", at, err)
				}
				if lines := replayer.Compare(truth); len(lines) > 0 {
					t.Errorf("entry %d: %s\ne2fsck said: %s", at, strings.Join(lines[:min(len(lines), 10)], "\n"), out)
				}
			}
		})
	}
}
