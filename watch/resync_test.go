package watch_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/event"
	"vmscope/internal/fsoracle"
	"vmscope/watch"
)

// gappy loses writes now and then: the disk has them, and nobody is told. All that happens by chance, and how much time
// passes, is of its rng.
type gappy struct {
	watch.Source
	rng  *rand.Rand
	left int // until the next gap
	gaps int
	now  time.Time
}

// clock holds crawling and reading up now and then, but not just before the first gap: all has been read by then.
func (g *gappy) clock() time.Time {
	switch {
	case g.gaps == 0 && g.left < 50:
		g.now = g.now.Add(20 * time.Second)
	case g.rng.IntN(4) == 0:
		g.now = g.now.Add(time.Duration(g.rng.Int64N(1 << g.rng.IntN(34))))
	}
	return g.now
}

func (g *gappy) Next(ctx context.Context) (block.Write, error) {
	if g.rng.IntN(50) == 0 {
		return block.Write{}, context.DeadlineExceeded // a quiet moment
	}
	if g.left--; g.left >= 0 {
		w, err := g.Source.Next(ctx)
		w.Time = g.clock()
		return w, err
	}
	g.gaps++
	n := 1 + g.rng.IntN(80)
	for i := range n {
		w, err := g.Source.Next(ctx)
		if err == io.EOF {
			if i == 0 {
				return block.Write{}, err
			}
			break
		}
		if err != nil {
			return w, err
		}
	}
	g.left = g.rng.IntN(120)
	return block.Write{}, &block.LostError{Reason: "a test"}
}

// TestResync watches recordings from which writes are missing, and a reader of the events has the right tree nevertheless.
func TestResync(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("VMSCOPE_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 0, 64); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"ext4", "ext3", "ext2-1k", "data-journal", "fast-commit", "inline-data", "small-journal", "casefold", "ea-inode", "recover-ext4"} {
		t.Run(name, func(t *testing.T) {
			t.Logf("VMSCOPE_SEED=%d", seed)
			r, err := fsoracle.Open("../fsinfer/ext4/testdata/streams/" + name + fsoracle.Extension)
			if err != nil {
				t.Fatal(err)
			}
			if r, err = r.From(r.Points[0].Entries); err != nil {
				t.Fatal(err)
			}
			log, err := logwrites.NewReader(bytes.NewReader(r.Log), bytesDevice{bytes.NewReader(r.Base)}, logwrites.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer log.Close()
			source := &gappy{Source: watch.FromTap(t.Context(), log), rng: rand.New(rand.NewPCG(seed, 0)), left: 150, now: time.Now()}
			w, err := watch.New([]watch.Disk{{Name: "vda", Source: source}}, watch.Options{Clock: source.clock, Warn: func(err error) { t.Log(err) }})
			if err != nil {
				t.Fatal(err)
			}
			replayer, err := fsoracle.New(r.Points[0].Tree)
			if err != nil {
				t.Fatal(err)
			}
			losses, told := 0, 0
			err = w.Run(t.Context(), func(e event.Event) error {
				switch e.Op {
				case event.Lost:
					losses++
					if e.Detail != "writes lost from 0 on: a test" {
						t.Errorf("LOST: %s", e.Detail)
					}
					return nil
				case event.Attached, event.Mount, event.Unmount:
					return nil
				}
				if e.Source == event.Resync {
					told++
				}
				e.Seq = 0
				for _, f := range replayer.Apply(e) {
					steps := name == "ext2-1k" && e.Source != event.Resync              // only its end is right
					links := name == "fast-commit" && strings.Contains(f.Why, " links") // it does not log the directory around a new one
					if !steps && !links {
						t.Error(f)
					}
				}
				return nil
			})
			if err != nil || losses == 0 || told == 0 {
				t.Errorf("%d losses, %d events behind them, %v", losses, told, err)
			}
			t.Logf("%d losses, %d events behind them", losses, told)
			for _, line := range replayer.Compare(r.Points[len(r.Points)-1].Tree) {
				t.Error(line)
			}
		})
	}
}
