package linux

import (
	"errors"

	"vmscope/ctype"
	"vmscope/kernel"
	"vmscope/mem"
)

// cachedFileLayout is what leads from a page frame to the file that it is part
// of: struct page (include/linux/mm_types.h), inode and dentry.
type cachedFileLayout struct {
	Mapping ctype.Field `c:"page.mapping|folio.mapping"`
	Head    ctype.Field `c:"page.compound_head|page.compound_info"`
	Host    ctype.Field `c:"address_space.host"`
	Cache   ctype.Field `c:"inode.i_mapping"`
	Names   ctype.Field `c:"inode.i_dentry"`
	InNames ctype.Field `c:"dentry.d_u.d_alias|dentry.d_alias"`
}

// pageMappingFlags in page.mapping: it is no struct address_space
// (PAGE_MAPPING_ANON, PAGE_MAPPING_MOVABLE).
const pageMappingFlags = 3

// CachedFile tells of which file a page of RAM holds a page, if it is in the page
// cache: the file's name in its file system, and the place in the file of the
// byte at pa. The name is empty if the kernel has forgotten it.
//
// What struct page says is believed only if the file's page cache has the page.
func (v *View) CachedFile(pa mem.PA) (path kernel.Text, offset uint64, ok bool, err error) {
	p, err := derived(v.Kernel, newPageCachePlan)
	if err != nil {
		return "", 0, false, err
	}
	l, err := layout64[cachedFileLayout](v.Kernel)
	if err != nil {
		return "", 0, false, err
	}
	vmem, err := v.port.vmemmap(v)
	if err != nil {
		return "", 0, false, err
	}
	size := v.Mode.PageSize()
	pfn := uint64(pa) / size
	page := vmem + mem.VA(pfn*p.Page.Size())
	w := loadsOf(v.Mem)
	if head := w.ptr(l.Head.At(page)); head&1 != 0 { // a page of a folio that begins with another
		if head--; head > page || page-head > mem.VA(maxFolio*p.Page.Size()) {
			return "", 0, false, nil
		}
		pfn -= uint64(page-head) / p.Page.Size()
		page = head
	}
	mapping, first := w.ptr(l.Mapping.At(page)), w.u64(p.Index.At(page))
	if w.err != nil || mapping == 0 || mapping&pageMappingFlags != 0 {
		return "", 0, false, notMapped(w.err)
	}
	inode := w.ptr(l.Host.At(mapping))
	if w.err != nil || inode == 0 || w.ptr(l.Cache.At(inode)) != mapping {
		return "", 0, false, notMapped(w.err)
	}
	index := first + uint64(pa)/size - pfn
	cache, err := v.PageCache(mapping)
	if err != nil {
		return "", 0, false, err
	}
	if at, ok, err := cache.Frame(index); err != nil || !ok || at != pa&^mem.PA(size-1) {
		return "", 0, false, notMapped(err)
	}
	if name := w.ptr(l.Names.At(inode)); name != 0 {
		paths, perr := v.paths()
		if perr == nil {
			path, err = paths.inFS(name - mem.VA(l.InNames.Offset))
		}
		err = errors.Join(perr, err)
	}
	return path, index*size + uint64(pa)%size, true, errors.Join(w.err, err)
}

// notMapped is nil for errors that say that what was taken for an address is
// none.
func notMapped(err error) error {
	if transient(err) {
		return nil
	}
	return err
}
