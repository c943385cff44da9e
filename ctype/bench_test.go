package ctype

import (
	"runtime"
	"testing"
)

func BenchmarkParse(b *testing.B) {
	blob := fixture(b, "")
	b.ReportAllocs()
	b.SetBytes(int64(len(blob)))
	for b.Loop() {
		if _, err := Parse(blob); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFirstLookup includes building the name index, as a command does once.
func BenchmarkFirstLookup(b *testing.B) {
	blob := fixture(b, "")
	b.ReportAllocs()
	for b.Loop() {
		ts, err := Parse(blob)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := ts.Lookup("task_struct"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRetained reports what a kernel's types hold beside the blob.
func BenchmarkRetained(b *testing.B) {
	blob := fixture(b, "")
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		ts, err := Parse(blob)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := ts.Lookup("task_struct"); err != nil {
			b.Fatal(err)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		runtime.KeepAlive(ts)
	}
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/1024, "KiB-retained")
	b.ReportMetric(float64(len(blob))/1024, "KiB-blob")
}

func BenchmarkLookup(b *testing.B) {
	ts := kernel(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ts.Lookup("task_struct"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMember(b *testing.B) {
	typ, err := kernel(b).Lookup("task_struct")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := typ.Member("comm"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEnum(b *testing.B) {
	ts := kernel(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ts.Enum("MODULE_STATE_LIVE"); err != nil {
			b.Fatal(err)
		}
	}
}
