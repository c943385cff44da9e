// Package sample is what the measurements with a guest share: flags, and statistics that say how far noise goes.
//
// All compare within a round: what is compared has its turn in each round, in a random order and shortly one after the
// other, so that what the machine does besides hits all alike. The spread over rounds is then the noise.
package sample

import (
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
)

// Options are the flags of every measurement.
type Options struct {
	Rounds   int
	Kernel   string // of the guest, a name of guestlab's
	Dir      string // where disks' images are; "" is where temporary files are
	Progress io.Writer
}

// Flags adds o's flags. rounds is the default of the one that is named so.
func (o *Options) Flags(f *flag.FlagSet, named string, rounds int) {
	f.IntVar(&o.Rounds, named, rounds, "rounds, in each of which everything is measured once")
	f.StringVar(&o.Kernel, "kernel", "bookworm-cloud", "of the guest")
	f.StringVar(&o.Dir, "dir", "", "where the disks' images are; empty: where temporary files are")
}

// Round tells that a round is over.
func (o *Options) Round(n int) {
	fmt.Fprintf(o.Progress, "\rround %d of %d", n, o.Rounds)
	if n == o.Rounds {
		fmt.Fprintln(o.Progress)
	}
}

// Ext4 are mke2fs's options for a measured disk: nothing of it is initialized later, while something is measured.
var Ext4 = []string{"-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"}

// Fill writes an image's holes, so that no write of a guest has to find space on the host first: how long that and the flushes
// behind it take is not the way's doing, and differs from image to image.
func Fill(image string) error {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(b)) {
		n, err := f.ReadAt(b, off)
		if n > 0 {
			if _, err := f.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return f.Sync()
		}
		if err != nil {
			return err
		}
	}
}

// QuietGuest is a script that has a guest write nothing by itself for ten minutes, and MountOptions are those of disks.
const (
	QuietGuest   = "echo 0 >/proc/sys/vm/dirty_writeback_centisecs"
	MountOptions = "noatime,commit=600"
)

// Quantile of values that need not be sorted, between neighbours as R's type 7.
func Quantile[T ~int64 | ~float64](v []T, q float64) T {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	x := q * float64(len(s)-1)
	i := min(int(x), len(s)-1)
	j := min(i+1, len(s)-1)
	return s[i] + T((x-float64(i))*float64(s[j]-s[i]))
}

// Estimate is a median over rounds with its bootstrap interval of 95 %: percentiles of the median over resamples of the
// rounds.
type Estimate[T ~int64 | ~float64] struct{ Median, Low, High T }

// Median estimates the median of what was found in each round. The same values give the same interval.
func Median[T ~int64 | ~float64](v []T) (e Estimate[T]) {
	if len(v) == 0 {
		return e
	}
	const resamples = 4000
	r := rand.New(rand.NewPCG(7, uint64(len(v))))
	medians := make([]T, resamples)
	again := make([]T, len(v))
	for i := range medians {
		for k := range again {
			again[k] = v[r.IntN(len(v))]
		}
		medians[i] = Quantile(again, 0.5)
	}
	return Estimate[T]{Quantile(v, 0.5), Quantile(medians, 0.025), Quantile(medians, 0.975)}
}

// Holds reports whether x lies within the interval.
func (e Estimate[T]) Holds(x T) bool { return e.Low <= x && x <= e.High }

// Between applies f to the values of two ways that are of one round.
func Between[A, T any](a, b []A, f func(a, b A) T) []T {
	v := make([]T, min(len(a), len(b)))
	for i := range v {
		v[i] = f(a[i], b[i])
	}
	return v
}

// WriteDoc replaces what a Markdown file has between the comments <!-- NAME --> and <!-- /NAME -->.
func WriteDoc(path, name, text string) error {
	doc, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok1 := strings.Cut(string(doc), "<!-- "+name+" -->\n")
	_, tail, ok2 := strings.Cut(rest, "<!-- /"+name+" -->")
	if !ok1 || !ok2 {
		return fmt.Errorf("%s has no place for %s", path, name)
	}
	return os.WriteFile(path, []byte(head+"<!-- "+name+" -->\n"+text+"<!-- /"+name+" -->"+tail), 0o644)
}
