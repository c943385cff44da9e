package fslab

import (
	"cmp"
	"slices"

	"vmscope/internal/guestlab"
)

// A Set is a kind of file system to test: how it is made, how it is mounted, and what is done on it.
type Set struct {
	Name     string
	About    string
	Kernel   string   // of the lab; default bookworm-cloud
	Type     string   // for mke2fs and to mount; default ext4
	Mke2fs   []string // more arguments of mke2fs
	Extended string   // more of its extended options (-E)
	MiB      int64    // size of the disk; default 64
	Mount    string   // options to mount with
	Ops      guestlab.FSOps

	// After names a set whose guest lost its power in the middle: the disk that it left is where this one starts, with a
	// journal to recover. It is recorded after that set.
	After string
}

// Group is the sets that one guest can go through.
type Group struct {
	Kernel string
	Sets   []Set
}

// ByKernel groups sets by their kernels, so that each is booted once.
func ByKernel(sets []Set) []Group {
	var groups []Group
	for _, s := range sets {
		kernel := cmp.Or(s.Kernel, "bookworm-cloud")
		i := slices.IndexFunc(groups, func(g Group) bool { return g.Kernel == kernel })
		if i < 0 {
			i = len(groups)
			groups = append(groups, Group{Kernel: kernel})
		}
		groups[i].Sets = append(groups[i].Sets, s)
	}
	return groups
}

// FreshSets are the sets whose file systems mke2fs makes.
func FreshSets() []Set { return slices.DeleteFunc(Sets(), func(s Set) bool { return s.After != "" }) }

// Sets are the sets of options that inference has to cope with.
func Sets() []Set {
	fsyncs := guestlab.FSOps{Fsync: 4, FsyncDir: 9}
	return []Set{
		{Name: "ext4", About: "ext4 as mke2fs makes it on a large disk", Mke2fs: []string{"-b", "4096"}},
		{Name: "ext4-1k", About: "blocks of 1 KiB", Mke2fs: []string{"-b", "1024"}},
		{Name: "data-journal", About: "file data in the journal, blocks of 2 KiB", Mke2fs: []string{"-b", "2048"}, Mount: "data=journal"},
		{Name: "async-commit", About: "commit blocks that do not wait", Mount: "journal_async_commit,data=writeback"},
		{Name: "async-commit-v1", About: "the same with the journal's first kind of checksum", Mke2fs: []string{"-b", "1024", "-O", "^64bit,^metadata_csum"}, Mount: "journal_async_commit,data=writeback"},
		{Name: "small-journal", About: "a journal of 1 MiB, which wraps", Mke2fs: []string{"-b", "1024", "-J", "size=1"}, Ops: guestlab.FSOps{Sync: 15}},
		{Name: "fast-commit-6.1", About: "fast commits by fsync, of an older kernel", Mke2fs: []string{"-b", "4096", "-O", "fast_commit"}, Ops: fsyncs},
		{Name: "fast-commit", About: "fast commits by fsync", Mke2fs: []string{"-b", "4096", "-O", "fast_commit"}, Kernel: "sid-cloud", Ops: fsyncs},
		{Name: "csum-seed-orphan-file", About: "a checksum seed apart from the UUID, an orphan file",
			Mke2fs: []string{"-b", "4096", "-O", "metadata_csum_seed,orphan_file"}, Kernel: "sid-cloud", Ops: fsyncs},
		{Name: "bigalloc", About: "clusters of 64 KiB", Mke2fs: []string{"-b", "4096", "-O", "bigalloc", "-C", "65536"}, MiB: 256},
		{Name: "inline-data", About: "small files and directories in the inode", Mke2fs: []string{"-b", "4096", "-O", "inline_data"}, Kernel: "trixie-cloud", Ops: fsyncs},
		{Name: "no-journal", About: "ext4 without a journal", Mke2fs: []string{"-b", "4096", "-O", "^has_journal"}, Kernel: "trixie-cloud"},
		{Name: "ext2-1k", About: "no journal, block maps, blocks of 1 KiB", Mke2fs: []string{"-b", "1024"}, Type: "ext2"},
		{Name: "ext2-4k", About: "no journal, block maps, blocks of 4 KiB", Mke2fs: []string{"-b", "4096"}, Type: "ext2", Kernel: "bullseye-cloud"},
		{Name: "ext3", About: "block maps, a journal without checksums", Mke2fs: []string{"-b", "4096"}, Type: "ext3", Kernel: "bullseye-cloud"},
		{Name: "desc-64bit", About: "64-bit block numbers, group descriptors of 64 bytes", Mke2fs: []string{"-b", "1024", "-O", "64bit"}, Kernel: "bullseye-cloud"},
		{Name: "no-64bit", About: "32-bit block numbers, no checksums of metadata", Mke2fs: []string{"-b", "1024", "-O", "^64bit,^metadata_csum,uninit_bg"}, Kernel: "bullseye-cloud", Ops: fsyncs},
		{Name: "csum-v3-32bit", About: "checksums and 32-bit block numbers", Mke2fs: []string{"-b", "2048", "-O", "^64bit,metadata_csum"}, Kernel: "trixie-cloud"},
		{Name: "meta-bg", About: "group descriptors in their groups, no flexible groups", Mke2fs: []string{"-b", "1024", "-O", "meta_bg,^resize_inode,^flex_bg"}, Kernel: "trixie-cloud"},
		{Name: "large-dir", About: "a directory of 2,000 names, htree of three levels allowed",
			Mke2fs: []string{"-b", "1024", "-O", "large_dir"}, Kernel: "trixie-cloud", Ops: guestlab.FSOps{Many: 2000, Sync: 40}},
		{Name: "ea-inode", About: "attributes in inodes of their own", Mke2fs: []string{"-b", "4096", "-O", "ea_inode"}, Kernel: "trixie-cloud", Ops: guestlab.FSOps{MaxXattr: 30_000}},
		{Name: "casefold", About: "a directory that ignores case", Mke2fs: []string{"-b", "4096", "-O", "casefold"}, Extended: "encoding=utf8", Kernel: "trixie-cloud",
			Ops: guestlab.FSOps{Prepare: []guestlab.KeptDir{{Name: "keepfold", Casefold: true}}}},
		{Name: "encrypt", About: "an encrypted directory", Mke2fs: []string{"-b", "4096", "-O", "encrypt,stable_inodes"}, Kernel: "trixie-cloud",
			Ops: guestlab.FSOps{Prepare: []guestlab.KeptDir{{Name: "keepcrypt", Encrypt: true}}, MaxFile: 1000, MaxName: 100, Count: 120}},
		{Name: "blocks-64k", About: "blocks of 64 KiB", Mke2fs: []string{"-b", "65536"}, MiB: 512, Kernel: "sid-cloud"},
		{Name: "lazytime", About: "times kept in memory, no delayed allocation", Mke2fs: []string{"-b", "4096"}, Mount: "lazytime,nodelalloc"},
		{Name: "lazy-init", About: "inode tables that the guest clears while it works", Mke2fs: []string{"-b", "4096"}, Extended: "nodiscard,lazy_itable_init=1,lazy_journal_init=1",
			Mount: "init_itable=0", Kernel: "trixie-cloud"},
		{Name: "inode-128", About: "inodes of 128 bytes", Mke2fs: []string{"-b", "1024", "-I", "128"}, Ops: fsyncs},
		{Name: "recover-ext4", About: "recovery of a journal", After: "ext4"},
		{Name: "recover-small-journal", About: "recovery of a journal that wrapped", After: "small-journal"},
		{Name: "recover-ext3", About: "recovery of a journal without checksums", After: "ext3", Type: "ext3"},
		{Name: "recover-fast-commit", About: "recovery of fast commits", After: "fast-commit", Kernel: "sid-cloud", Ops: fsyncs},
	}
}
