package watch_test

import (
	"bytes"
	"context"
	"io"
	"math"
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
	gap  int // its writes
	gaps int
	now  time.Time

	// ahead, if not nil, is the same disk, whose writes are made before they are told where a gap is near, as a ring does that
	// is full: what a gap takes away was made before what the ring holds has been read.
	ahead   watch.Source
	near    int // writes before the gap
	at, far int // writes made, on both
	ended   bool
	doubt   bool
}

// Device implements watch.Source.
func (g *gappy) Device() block.Device { return g }
func (g *gappy) Size() int64          { return g.Source.Device().Size() }

func (g *gappy) ReadAt(p []byte, off int64) (int, error) {
	if g.ahead == nil || g.left > g.near || g.ended {
		return g.Source.Device().ReadAt(p, off)
	}
	for ; g.far < g.at+g.left+g.gap; g.far++ {
		if _, err := g.ahead.Next(context.Background()); err != nil {
			g.far = math.MaxInt // the log's end
			break
		}
	}
	g.doubt = true
	return g.ahead.Device().ReadAt(p, off)
}

// Inexact implements watch.Doubter.
func (g *gappy) Inexact() bool {
	was := g.doubt
	g.doubt = false
	return was
}

// plan chooses the next gap.
func (g *gappy) plan(left int) {
	g.left, g.gap, g.near = left, 1+g.rng.IntN(80), g.rng.IntN(40)
	if g.gaps == 0 {
		g.near = min(g.near, 5) // all has been read by then
	}
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
		g.at++
		w, err := g.Source.Next(ctx)
		if err == io.EOF && !g.ended && g.ahead != nil {
			g.ended = true
			return block.Write{}, &block.LostError{Reason: "a test"} // what was read meanwhile was ahead
		}
		w.Time = g.clock()
		return w, err
	}
	g.gaps++
	for i := range g.gap {
		g.at++
		w, err := g.Source.Next(ctx)
		if g.ended = g.ended || err == io.EOF; g.ended {
			if i == 0 {
				return block.Write{}, err
			}
			break
		}
		if err != nil {
			return w, err
		}
	}
	g.plan(g.rng.IntN(120))
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
	for _, name := range []string{
		"ext4", "ext3", "ext2-1k", "data-journal", "fast-commit", "inline-data", "small-journal", "casefold", "ea-inode", "recover-ext4",
		"ext4 ahead", "data-journal ahead", "fast-commit ahead", "ea-inode ahead", "small-journal ahead",
	} {
		name, ahead := strings.CutSuffix(name, " ahead")
		t.Run(name+map[bool]string{true: " ahead"}[ahead], func(t *testing.T) {
			t.Logf("VMSCOPE_SEED=%d", seed)
			r, err := fsoracle.Open("../fsinfer/ext4/testdata/streams/" + name + fsoracle.Extension)
			if err != nil {
				t.Fatal(err)
			}
			if r, err = r.From(r.Points[0].Entries); err != nil {
				t.Fatal(err)
			}
			open := func() watch.Source {
				log, err := logwrites.NewReader(bytes.NewReader(r.Log), bytesDevice{bytes.NewReader(r.Base)}, logwrites.Options{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { log.Close() })
				return watch.FromTap(t.Context(), log)
			}
			source := &gappy{Source: open(), rng: rand.New(rand.NewPCG(seed, 0)), now: time.Now()}
			source.plan(150)
			if ahead {
				source.ahead = open()
			}
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
					if e.Detail != "writes lost from 0 on: a test" && !(ahead && strings.HasPrefix(e.Detail, "vda: a block was overwritten")) {
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
