package jbd2

import (
	"io"
	"path/filepath"
	"testing"

	"vmscope/internal/guestlab"
	"vmscope/internal/guestlab/fslab"
)

// Journals that the recordings lack: checksums of version 1, with and without asynchronous commits.
func TestLiveJournals(t *testing.T) {
	if testing.Short() {
		t.Skip("boots a guest")
	}
	need(t, "mke2fs", "debugfs")
	plain := []string{"-b", "1024", "-O", "^metadata_csum,^64bit", "-J", "size=1"}
	sets := []fslab.Set{
		{Name: "v1", Mke2fs: plain, MiB: 16, Mount: "journal_checksum", Ops: guestlab.FSOps{Sync: 10}},
		{Name: "v1-async", Mke2fs: plain, MiB: 16, Mount: "journal_async_commit,data=writeback", Ops: guestlab.FSOps{Sync: 10}},
		{Name: "v1-data", Mke2fs: plain, MiB: 16, Mount: "journal_checksum,data=journal", Ops: guestlab.FSOps{Fsync: 4, Sync: 20}},
	}
	r := fslab.Recorder{Dir: t.TempDir(), Seed: 1, Count: 60, Say: io.Discard}
	if err := r.Record(t.Context(), "bookworm-cloud", sets); err != nil {
		t.Fatal(err)
	}
	for _, s := range sets {
		t.Run(s.Name, func(t *testing.T) {
			p := playRecording(t, filepath.Join(r.Dir, s.Name))
			if p.s.Super().Compat&CompatChecksum == 0 || p.counts.tx < 10 {
				t.Errorf("features %#x, %+v", p.s.Super().Compat, p.counts)
			}
		})
	}
}
